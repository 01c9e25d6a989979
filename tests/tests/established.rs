//! What an established connection costs: nothing.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use tests::{
    bpf,
    stage::{Stage, VIP4, VIP6, at},
};

/// How often the node's programs have run, but for getpeername's: that is asked by the probe, not
/// by the connection.
fn runs(stage: &Stage) -> Result<u64> {
    let cgroup = stage.world.node("node-a").cgroup().to_owned();
    let ours: BTreeSet<u32> = bpf::attached(&cgroup)?
        .into_iter()
        .flat_map(|(_, ids)| ids)
        .collect();
    ensure!(!ours.is_empty(), "nothing is attached");
    let mut runs = 0;
    for program in loaded_programs() {
        let program = program.context("a loaded program")?;
        let asked = program
            .name_as_str()
            .is_some_and(|name| name.starts_with("kp_getpeername"));
        if ours.contains(&program.id()) && !asked {
            runs += program.run_count();
        }
    }
    Ok(runs)
}

#[test]
fn no_program_runs_for_an_established_tcp_connection() -> Result<()> {
    let stage = Stage::usual()?;
    let _counting = enable_stats(Stats::RunTime)?;
    for vip in [at(VIP4, 80), at(VIP6, 80)] {
        let before = runs(&stage)?;
        let connection = stage.client().probe().connect(vip)?;
        let dialled = runs(&stage)?;
        ensure!(dialled > before, "the count stands still: {dialled}");
        for line in 0..500 {
            connection.exchange(&line.to_string())?;
        }
        let after = runs(&stage)?;
        ensure!(after == dialled, "{} runs for 500 lines", after - dialled);
    }
    Ok(())
}

#[test]
fn a_connected_udp_socket_runs_a_program_only_where_it_asks_who_sent() -> Result<()> {
    let stage = Stage::usual()?;
    // The server's own node has no programs.
    stage.set_backends(&["backend-3"])?;
    let _counting = enable_stats(Stats::RunTime)?;
    let socket = stage.client().probe().udp_connected(at(VIP4, 53))?;
    let dialled = runs(&stage)?;
    for payload in 0..500 {
        socket.exchange(&payload.to_string())?;
    }
    // recvfrom(): its answer is translated. send() runs nothing.
    let receiving = runs(&stage)? - dialled;
    ensure!(receiving == 500, "{receiving} runs for 500 exchanges");
    Ok(())
}
