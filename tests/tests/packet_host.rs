//! The packet path on the host: rows of packets, judged byte for byte.

use anyhow::{Result, ensure};
use proxy_common::{
    datapath::path::{self, Verdict, Work},
    wire::bytes::Bytes,
};
use tests::packet::{Scene, rows};

#[test]
fn every_row_comes_out_as_wanted() -> Result<()> {
    let rows = rows();
    for row in &rows {
        let maps = Scene::maps();
        let mut work = Work::default();
        for (i, step) in row.steps.iter().enumerate() {
            let mut packet = Bytes::new(step.frame.clone());
            let verdict = path::run(step.hook, step.link, &mut packet, &maps, &mut work);
            ensure!(
                verdict == step.verdict,
                "{}, step {i}: {verdict:?}, wanted {:?}",
                row.name,
                step.verdict
            );
            let goes_on = !matches!(verdict, Verdict::Reject | Verdict::Drop(_));
            ensure!(
                !goes_on || packet.data == step.out,
                "{}, step {i}:\n     in {:02x?}\n    out {:02x?}\n wanted {:02x?}",
                row.name,
                step.frame,
                packet.data,
                step.out
            );
        }
    }
    ensure!(rows.len() > 90, "{} rows", rows.len());
    Ok(())
}
