//! The packet path in the kernel (root): the same rows as on the host, and what a packet costs.

use anyhow::{Result, ensure};
use proxy_common::datapath::path::Verdict;
use tests::packet::{
    kernel::{Kernel, PROGRAMS, code},
    rows,
};

#[test]
fn every_row_comes_out_as_on_the_host() -> Result<()> {
    let mut kernel = Kernel::load()?;
    let rows = rows();
    for row in &rows {
        kernel.forget()?;
        for (i, step) in row.steps.iter().enumerate() {
            let before = kernel.counters()?;
            let outcome = kernel.run(step.hook, step.link, &step.frame, 1)?;
            let mut wanted = before;
            *wanted.entry(step.verdict.counter()).or_default() += 1;
            let counted = kernel.counters()?;
            ensure!(
                outcome.code == code(step.verdict) && counted == wanted,
                "{}, step {i}: returned {}, wanted {:?}; counted {counted:?}",
                row.name,
                outcome.code,
                step.verdict,
            );
            let goes_on = !matches!(step.verdict, Verdict::Reject | Verdict::Drop(_));
            ensure!(
                !goes_on || outcome.out == step.out,
                "{}, step {i}:\n     in {:02x?}\n    out {:02x?}\n wanted {:02x?}",
                row.name,
                step.frame,
                outcome.out,
                step.out
            );
        }
    }
    println!("{} rows", rows.len());
    Ok(())
}

#[test]
fn the_verifier_has_room_left() -> Result<()> {
    let mut kernel = Kernel::load()?;
    for name in PROGRAMS {
        let info = kernel.program(name)?.info()?;
        // Told since 5.16.
        let verified = info.verified_instruction_count();
        println!("{name}: {verified:?} instructions verified");
        ensure!(
            verified.is_none_or(|count| count < 750_000),
            "{name}: {verified:?}"
        );
    }
    Ok(())
}
