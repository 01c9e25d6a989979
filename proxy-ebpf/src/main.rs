//! The programs kube-portal loads into the kernel. Thin on purpose: maps, adapters, entries; every
//! decision is in `proxy_common::datapath`.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod context;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod program;

/// On the host this crate is an empty program, so that `cargo check --workspace` needs no BPF
/// toolchain.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Programs that call GPL-only helpers must say so; none of ours does, and the kernel asks anyway.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
