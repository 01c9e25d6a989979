//! The programs kube-portal loads into the kernel. Thin on purpose: maps, adapters, entries; every
//! decision is in `proxy_common::datapath`.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// Adding atomically: `context/tables.rs`.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod context;
#[cfg(target_arch = "bpf")]
mod log;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod monitor;
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

/// The kernel gives bpf_fib_lookup to programs that are available under the GPL; these are, at the
/// user's choice (LICENSE-GPL-2.0).
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 7] = *b"GPL v2\0";
