//! How many connections backends have, by the maps of the kernel: counted where nobody has, kept right by the
//! sweep that deletes flows, and set right where it has drifted.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::{Result, ensure};
use proxy_common::{
    abi::{
        Direction, FlowEntry, FlowTimeouts, Protocol, SockAddr, SocketCookie, SocketFlow, Tuple,
        Via,
    },
    datapath::conntrack::{opposite, state},
};
use proxy_user::{
    expiry::{Flows, Sockets, monotonic_ns, sweep},
    maps::{Capacity, MapStore as _},
    recount::{Recount, Tally, at_start},
};
use tests::maps::{self, Made};

const ROOM: Capacity = Capacity {
    frontends: 64,
    services: 64,
    backends: 1024,
    slots: 64,
    source_ranges: 64,
    service_nets: 64,
};

fn addr(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 | number).into()
}

fn socket(cookie: u64, backend_id: u32) -> (SocketCookie, SocketFlow) {
    let at = SockAddr::from_parts(addr(1).into(), 80u16.to_be());
    let flow = SocketFlow {
        frontend: at,
        backend: at,
        backend_id,
        service: 1,
        tgid_or_ms: 0,
        protocol: Protocol::Tcp.number(),
        attempt: 0,
        zero: [0; 2],
    };
    (SocketCookie { cookie }, flow)
}

/// Both directions of a flow.
fn flow(client: u32, backend_id: u32, state: u8, used_ns: u64) -> [(Tuple, FlowEntry); 2] {
    let port = |port: u16| port.to_be();
    let tuple = Tuple {
        src: addr(client).into(),
        dst: addr(0xff_0000).into(),
        src_port_be: port(4000),
        dst_port_be: port(80),
        protocol: Protocol::Tcp.number(),
        zero: [0; 3],
    };
    let entry = FlowEntry {
        used_ns,
        src: SockAddr::from_parts(tuple.src, tuple.src_port_be),
        dst: SockAddr::from_parts(addr(0xfe_0000 + backend_id).into(), port(8080)),
        service: 1,
        backend_id,
        proof: 0,
        direction: Direction::Original as u8,
        via: Via::Stack as u8,
        state,
        zero: 0,
    };
    let mut other = tuple;
    opposite(&entry, tuple.protocol, &mut other);
    let mut reply = entry;
    reply.src = SockAddr::from_parts(tuple.dst, tuple.dst_port_be);
    reply.dst = SockAddr::from_parts(tuple.src, tuple.src_port_be);
    reply.direction = Direction::Reply as u8;
    [(tuple, entry), (other, reply)]
}

struct Ground {
    store: Arc<proxy_user::maps::bpf::BpfStore>,
    flows: Flows,
    sockets: Sockets,
    runtime: tokio::runtime::Runtime,
}

impl Ground {
    fn new(capacity: Capacity) -> Result<Self> {
        let Made {
            store,
            sockets,
            flows,
        } = maps::make_all(capacity, 131_072, 524_288)?;
        let store = Arc::new(store);
        Ok(Self {
            flows: Flows {
                map: flows,
                timeouts: FlowTimeouts::DEFAULT,
                tally: Some(Tally::new(Arc::clone(&store))),
            },
            sockets: Sockets {
                map: sockets,
                tally: Tally::new(Arc::clone(&store)),
            },
            store,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_time()
                .build()?,
        })
    }

    fn put_flow(&mut self, flow: [(Tuple, FlowEntry); 2]) -> Result<()> {
        for (tuple, entry) in flow {
            self.flows.map.put(&tuple, &entry)?;
        }
        Ok(())
    }

    fn put_socket(&mut self, cookie: u64, backend_id: u32) -> Result<()> {
        let (key, flow) = socket(cookie, backend_id);
        Ok(self.sockets.map.put(&key, &flow)?)
    }

    fn sweep(&mut self, recount: &mut Recount) -> Result<()> {
        let Self {
            flows,
            sockets,
            runtime,
            ..
        } = self;
        recount.begin();
        runtime.block_on(async { sweep(flows, 0).await })?;
        runtime.block_on(async { sweep(sockets, 0).await })?;
        let tally = flows.tally.as_ref().expect("it has one");
        recount.end(true, tally.counts(), sockets.tally.counts());
        Ok(())
    }

    fn active(&self) -> Result<Vec<(u32, i64)>> {
        let mut active: Vec<_> = self.store.observe()?.active.into_iter().collect();
        active.sort_unstable();
        Ok(active)
    }
}

#[test]
fn where_nobody_has_counted_every_entry_is_counted_once() -> Result<()> {
    let mut ground = Ground::new(ROOM)?;
    let now = monotonic_ns();
    for client in 0..10_000 {
        ground.put_flow(flow(
            client,
            1 + client % 3,
            state::PROVEN | state::COUNTED,
            now,
        ))?;
    }
    // Closed, or of an agent that didn't count.
    ground.put_flow(flow(20_000, 1, state::PROVEN, now))?;
    for cookie in 0..100 {
        ground.put_socket(cookie, if cookie < 60 { 2 } else { 0 })?;
    }
    // As it was when the ids meant something else; and more than there are now.
    ground.store.add_active(9, 7);
    ground.put_socket(1000, ROOM.backends)?;
    at_start(&ground.store, &ground.sockets.map, &ground.flows.map)?;
    let counted = ground.active()?;
    ensure!(counted == [(1, 3334), (2, 3393), (3, 3333)], "{counted:?}");
    Ok(())
}

#[test]
fn a_flow_that_the_sweep_deletes_is_subtracted_once_and_a_closed_one_never() -> Result<()> {
    let mut ground = Ground::new(ROOM)?;
    let counted = state::PROVEN | state::COUNTED;
    for client in 0..5000 {
        // Silent since the kernel began; or, as far as this test goes, never.
        let used_ns = if client % 5 == 0 { u64::MAX } else { 0 };
        let is_open = client % 2 == 0;
        let state = if is_open {
            counted
        } else {
            state::PROVEN | state::FIN_REPLY
        };
        ground.put_flow(flow(client, 1, state, used_ns))?;
    }
    ground.flows.timeouts.tcp_established = 5;
    ground.flows.timeouts.tcp_close_wait = 5;
    ground.store.add_active(1, 2500);
    let told = Arc::new(AtomicU64::new(0));
    let tell = Arc::clone(&told);
    let mut recount = Recount::new(Arc::clone(&ground.store), move |connections| {
        tell.fetch_add(connections, Ordering::Relaxed);
    });
    for _ in 0..4 {
        ground.sweep(&mut recount)?;
        let active = ground.active()?;
        ensure!(active == [(1, 500)], "{active:?}");
    }
    ensure!(told.load(Ordering::Relaxed) == 0, "nothing had drifted");
    Ok(())
}

#[test]
fn what_has_drifted_is_the_truth_after_three_sweeps() -> Result<()> {
    let mut ground = Ground::new(ROOM)?;
    let now = monotonic_ns();
    for client in 0..100 {
        ground.put_flow(flow(
            client,
            1 + client % 2,
            state::PROVEN | state::COUNTED,
            now,
        ))?;
        ground.put_socket(client.into(), 1)?;
    }
    // Right, too small, too large, and of an endpoint of which nothing is left.
    for (id, active) in [(1, 150), (2, 13), (3, 8), (4, -2)] {
        ground.store.add_active(id, active);
    }
    let told = Arc::new(AtomicU64::new(0));
    let tell = Arc::clone(&told);
    let mut recount = Recount::new(Arc::clone(&ground.store), move |connections| {
        tell.fetch_add(connections, Ordering::Relaxed);
    });
    ground.sweep(&mut recount)?;
    ground.sweep(&mut recount)?;
    ensure!(ground.active()? == [(1, 150), (2, 13), (3, 8), (4, -2)]);
    ensure!(ground.store.is_busy(4));
    for _ in 0..4 {
        ground.sweep(&mut recount)?;
        let active = ground.active()?;
        ensure!(active == [(1, 150), (2, 50)], "{active:?}");
    }
    ensure!(!ground.store.is_busy(4));
    ensure!(told.load(Ordering::Relaxed) == 37 + 8 + 2);
    Ok(())
}

/// `cargo test -p tests --test counts -- --ignored --nocapture what_a_count_costs`
#[test]
#[ignore = "a measurement"]
fn what_a_count_costs() -> Result<()> {
    let mut ground = Ground::new(Capacity {
        backends: 262_144,
        ..ROOM
    })?;
    let now = monotonic_ns();
    for client in 0..262_000 {
        ground.put_flow(flow(
            client,
            1 + client % 250_000,
            state::PROVEN | state::COUNTED,
            now,
        ))?;
    }
    for cookie in 0..131_000_u32 {
        ground.put_socket(cookie.into(), 1 + cookie)?;
    }
    let begun = Instant::now();
    at_start(&ground.store, &ground.sockets.map, &ground.flows.map)?;
    println!("at start: {:?}", begun.elapsed());
    let mut recount = Recount::new(Arc::clone(&ground.store), |_| {});
    for _ in 0..3 {
        let begun = Instant::now();
        recount.begin();
        let looked = begun.elapsed();
        let flows = &mut ground.flows;
        let runtime = &ground.runtime;
        let tallied = runtime.block_on(async { sweep(flows, 0).await })?;
        let sockets = runtime.block_on(async { sweep(&mut ground.sockets, 0).await })?;
        let tally = flows.tally.take();
        let untallied = runtime.block_on(async { sweep(flows, 0).await })?;
        let begun = Instant::now();
        let counts = tally.as_ref().expect("it has one").counts();
        recount.end(true, counts, ground.sockets.tally.counts());
        println!(
            "begin {looked:?}, flows {:?} (without counting {:?}), sockets {:?}, end {:?}",
            tallied.busy,
            untallied.busy,
            sockets.busy,
            begun.elapsed()
        );
        flows.tally = tally;
    }
    Ok(())
}
