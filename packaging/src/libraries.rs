//! Which shared libraries a program is given here, asked from the one who decides: its own dynamic loader.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

const PT_INTERP: u32 = 3;

/// The loader and every library, with those that libraries need; nothing of a program that is linked statically.
pub(super) fn of(binary: &Path) -> Result<Vec<PathBuf>> {
    let content = fs::read(binary).with_context(|| format!("read {}", binary.display()))?;
    let Some(loader) = interpreter(&content)
        .with_context(|| format!("{} is no ELF file of 64 bits", binary.display()))?
    else {
        return Ok(Vec::new());
    };
    // As well for glibc as for musl.
    let listed = Command::new(&loader)
        .arg("--list")
        .arg(binary)
        .output()
        .with_context(|| format!("run {}", loader.display()))?;
    let text = String::from_utf8_lossy(&listed.stdout);
    if !listed.status.success() {
        bail!(
            "{} --list {}: {}",
            loader.display(),
            binary.display(),
            String::from_utf8_lossy(&listed.stderr).trim()
        );
    }
    let mut paths = libraries(&text)?;
    paths.push(loader);
    Ok(paths)
}

/// The program header PT_INTERP; `None` for a program without, an error for what is no such file.
fn interpreter(elf: &[u8]) -> Result<Option<PathBuf>> {
    let field = |at: usize, size: usize| -> Result<u64> {
        let bytes = elf.get(at..at + size).context("it ends too early")?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        bail!("its magic bytes are others");
    }
    let headers = usize::try_from(field(0x20, 8)?)?;
    let size = usize::try_from(field(0x36, 2)?)?;
    let count = usize::try_from(field(0x38, 2)?)?;
    for header in (0..count).map(|number| headers + number * size) {
        if field(header, 4)? != u64::from(PT_INTERP) {
            continue;
        }
        let at = usize::try_from(field(header + 8, 8)?)?;
        let length = usize::try_from(field(header + 0x20, 8)?)?;
        let path = elf.get(at..at + length).context("it ends too early")?;
        let path = String::from_utf8_lossy(path);
        return Ok(Some(path.trim_end_matches('\0').into()));
    }
    Ok(None)
}

/// Lines are `NAME => PATH (ADDRESS)`, `PATH (ADDRESS)` for the loader, or without a path for the kernel's own.
fn libraries(listed: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in listed.lines() {
        let (name, place) = line.split_once("=>").unwrap_or((line, line));
        let place = place.trim();
        if place.starts_with("not found") {
            bail!("the library {} is not on this machine", name.trim());
        }
        let path = place.split(" (").next().unwrap_or_default();
        if path.starts_with('/') {
            paths.push(path.into());
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_list_is_read() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffc)\n\
            \tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let paths = libraries(listed).expect("paths");
        let wanted = [
            "/lib/x86_64-linux-gnu/libgcc_s.so.1",
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(paths, wanted.map(PathBuf::from));
        let error = libraries("\tlibx.so.1 => not found\n").unwrap_err();
        assert!(error.to_string().contains("libx.so.1"), "{error}");
    }

    #[test]
    fn this_test_has_a_loader_and_a_text_has_none() {
        let this = std::env::current_exe().expect("its path");
        let loader = interpreter(&fs::read(this).expect("its bytes")).expect("an ELF file");
        assert!(loader.is_none_or(|loader| loader.is_file()));
        assert!(interpreter(b"#!/bin/sh\n").is_err());
        assert!(interpreter(b"\x7fELF\x02\x01\x01").is_err());
    }
}
