//! The packet programs in the kernel (root).

use anyhow::{Context, Result};
use aya::{EbpfLoader, programs::SchedClassifier};
use proxy_user::loader::OBJECT;

#[test]
fn loads() -> Result<()> {
    let _ = rustix_memlock();
    let mut ebpf = EbpfLoader::new().load(OBJECT)?;
    for name in [
        "kp_tc_ingress",
        "kp_tc_egress",
        "kp_tc_ingress_ip",
        "kp_tc_egress_ip",
    ] {
        let program: &mut SchedClassifier =
            ebpf.program_mut(name).context("program")?.try_into()?;
        match program.load() {
            Ok(()) => {
                let info = program.info()?;
                println!(
                    "{name}: verified {:?} xlated {:?} jited {:?}",
                    info.verified_instruction_count(),
                    info.size_translated(),
                    info.size_jitted()
                );
            }
            Err(error) => {
                let text = format!("{error:#?}");
                let n = text.len();
                println!(
                    "{name}: FAILED len {n} {}",
                    &text[n.saturating_sub(4000)..].replace("\\n", "\n")
                );
            }
        }
    }
    Ok(())
}

fn rustix_memlock() -> Result<()> {
    nix::sys::resource::setrlimit(
        nix::sys::resource::Resource::RLIMIT_MEMLOCK,
        u64::MAX,
        u64::MAX,
    )?;
    Ok(())
}
