//! Which Rust compiles the kernel programs. Pure: `setup` looks at the machine and does what is decided here.
//!
//! The target bpfel-unknown-none has no prebuilt `core`. So the compiler must come with the sources of its own library
//! and accept `-Z build-std`: a nightly of rustup's, or a distribution's Rust told to allow it (RUSTC_BOOTSTRAP).

use std::{fmt, path::PathBuf};

/// The nightly we ask rustup for: Rust 1.97 with LLVM 22, the newest pair that the pinned aya crates (which want 1.98
/// in their next versions) and a released LLVM both fit. One date, so that everybody's programs meet the verifier alike.
pub(crate) const PINNED_NIGHTLY: &str = "nightly-2026-05-20";

/// Below this the workspace itself does not compile (`rust-version` in Cargo.toml).
pub(crate) const OLDEST: Release = Release {
    major: 1,
    minor: 95,
};

/// What bpf-linker 0.13.0 can be built against.
const LINKABLE_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Release {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl Release {
    /// `1.96.0`, `1.97.0-nightly`, `1.96.0+dfsg1-1~deb12u2`
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().splitn(3, '.');
        Some(Self {
            major: parts.next()?.parse().ok()?,
            minor: parts.next()?.parse().ok()?,
        })
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What `rustc -vV` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) release: Release,
    pub(crate) llvm_major: u32,
}

impl Version {
    pub(crate) fn parse(verbose: &str) -> Option<Self> {
        let field = |name: &str| {
            verbose
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        Some(Self {
            release: Release::parse(field("release")?)?,
            llvm_major: field("LLVM version")?.split('.').next()?.parse().ok()?,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A rustup toolchain of this name.
    Rustup(String),
    Distribution,
}

/// A compiler that exists on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Compiler {
    pub(crate) origin: Origin,
    pub(crate) sysroot: PathBuf,
    pub(crate) rustc: PathBuf,
    /// None: there is none beside the compiler.
    pub(crate) cargo: Option<PathBuf>,
    pub(crate) version: Version,
    /// Whether the sources of `core` are in the sysroot.
    pub(crate) has_sources: bool,
}

impl Compiler {
    /// None when it can build the kernel programs, or else why not.
    pub(crate) fn unfit(&self) -> Option<String> {
        let Version {
            release,
            llvm_major,
        } = self.version;
        if release < OLDEST {
            Some(format!("it is {release}, older than {OLDEST}"))
        } else if !LINKABLE_LLVM.contains(&llvm_major) {
            Some(format!("bpf-linker knows no LLVM {llvm_major}"))
        } else if !self.has_sources {
            Some("the sources of its library are missing".to_owned())
        } else if self.cargo.is_none() {
            Some("it has no cargo beside it".to_owned())
        } else {
            None
        }
    }

    fn is_nightly(&self, name: &str) -> bool {
        // rustup appends the host: nightly-x86_64-unknown-linux-gnu. A dated one continues with digits.
        let Origin::Rustup(toolchain) = &self.origin else {
            return false;
        };
        let Some(rest) = toolchain.strip_prefix(name) else {
            return false;
        };
        rest.is_empty()
            || rest
                .strip_prefix('-')
                .is_some_and(|host| !host.starts_with(|c: char| c.is_ascii_digit()))
    }
}

/// One way a distribution packages Rust with its sources. The first package is the compiler.
pub(crate) type PackageSet = &'static [&'static str];

/// Debian keeps a current Rust for its browsers under names of their own; `rustc` is the release's, often too old.
pub(crate) const PACKAGE_SETS: &[PackageSet] = &[
    &["rustc-web", "cargo-web", "rust-web-src"],
    &["rustc", "cargo", "rust-src"],
];

/// What the package manager offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Offers {
    /// There is no package manager we know.
    Unknown,
    /// Which compiler package is offered at which version; none of them, maybe because the lists are old or empty.
    Known {
        compilers: Vec<(&'static str, Release)>,
        lists_are_fresh: bool,
    },
}

/// The machine as far as the choice depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) rustup: Rustup,
    pub(crate) distribution: Option<Compiler>,
    pub(crate) offers: Offers,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rustup {
    Absent,
    Present {
        nightlies: Vec<Compiler>,
    },
    /// It is there but could not add the nightly.
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    Use(Compiler),
    AddNightly,
    RefreshLists,
    InstallPackages(PackageSet),
    /// Nothing we can do by ourselves; says what a person can.
    GiveUp(String),
}

/// The next step towards a usable compiler. After anything but `Use` and `GiveUp`, do it, look again, and ask again.
pub(crate) fn choose(machine: &Machine) -> Choice {
    match &machine.rustup {
        Rustup::Present { nightlies } => {
            let usable = |name| {
                nightlies
                    .iter()
                    .find(|found| found.is_nightly(name) && found.unfit().is_none())
            };
            match usable(PINNED_NIGHTLY).or_else(|| usable("nightly")) {
                Some(found) => return Choice::Use(found.clone()),
                None => return Choice::AddNightly,
            }
        }
        Rustup::Absent | Rustup::Refused => {}
    }
    if let Some(found) = &machine.distribution
        && found.unfit().is_none()
    {
        return Choice::Use(found.clone());
    }
    if let Offers::Known {
        compilers,
        lists_are_fresh,
    } = &machine.offers
    {
        let offered = |set: &PackageSet| {
            compilers
                .iter()
                .any(|(name, release)| set.first() == Some(name) && *release >= OLDEST)
        };
        if let Some(set) = PACKAGE_SETS.iter().find(|set| offered(set)) {
            return Choice::InstallPackages(set);
        }
        if !lists_are_fresh {
            return Choice::RefreshLists;
        }
    }
    let distribution = match &machine.distribution {
        Some(found) => format!(
            "{} can't be used because {}",
            found.rustc.display(),
            found.unfit().unwrap_or_default()
        ),
        None => "the distribution's Rust is not installed".to_owned(),
    };
    Choice::GiveUp(format!(
        "no Rust here can compile for the kernel: {}, and {distribution}. Run `rustup toolchain install {PINNED_NIGHTLY} \
         --profile minimal --component rust-src` where that works, or install Rust {OLDEST} or newer with its sources \
         from the distribution (packages like rustc, cargo and rust-src)",
        match machine.rustup {
            Rustup::Absent => "there is no rustup",
            Rustup::Refused | Rustup::Present { .. } => "rustup could not add a nightly",
        }
    ))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const DEBIAN: &str = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
        commit-date: 2026-05-25\nhost: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";

    fn compiler(origin: Origin, minor: u32) -> Compiler {
        Compiler {
            origin,
            sysroot: "/usr".into(),
            rustc: "/usr/bin/rustc".into(),
            cargo: Some("/usr/bin/cargo".into()),
            version: Version {
                release: Release { major: 1, minor },
                llvm_major: 22,
            },
            has_sources: true,
        }
    }

    fn nightly(name: &str) -> Compiler {
        compiler(Origin::Rustup(name.to_owned()), 97)
    }

    fn bare() -> Machine {
        Machine {
            rustup: Rustup::Absent,
            distribution: None,
            offers: Offers::Unknown,
        }
    }

    fn offers(compilers: &[(&'static str, u32)], lists_are_fresh: bool) -> Offers {
        let release = |minor| Release { major: 1, minor };
        let compilers = compilers
            .iter()
            .map(|&(name, minor)| (name, release(minor)))
            .collect();
        Offers::Known {
            compilers,
            lists_are_fresh,
        }
    }

    #[test]
    fn rustc_says_its_version() {
        let expected = Version {
            release: Release {
                major: 1,
                minor: 96,
            },
            llvm_major: 22,
        };
        assert_eq!(Version::parse(DEBIAN), Some(expected));
        let nightly = DEBIAN.replace("release: 1.96.0", "release: 1.97.0-nightly");
        assert_eq!(Version::parse(&nightly).map(|v| v.release.minor), Some(97));
        assert_eq!(Version::parse("rustc 1.96.0"), None);
        assert_eq!(
            Version::parse(&DEBIAN.replace("LLVM version", "Cranelift")),
            None
        );
        assert_eq!(
            Release::parse("1.96.0+dfsg1-1~deb12u2"),
            Some(Release {
                major: 1,
                minor: 96
            })
        );
        assert_eq!(Release::parse("(none)"), None);
    }

    #[test]
    fn the_pinned_nightly_goes_before_any_other() {
        let dated = format!("{PINNED_NIGHTLY}-x86_64-unknown-linux-gnu");
        let plain = nightly("nightly-x86_64-unknown-linux-gnu");
        let other_day = nightly("nightly-2026-01-01-x86_64-unknown-linux-gnu");
        let with = |nightlies: &[&Compiler]| {
            let nightlies = nightlies.iter().map(|&found| found.clone()).collect();
            choose(&Machine {
                rustup: Rustup::Present { nightlies },
                ..bare()
            })
        };
        assert_eq!(
            with(&[&plain, &nightly(&dated)]),
            Choice::Use(nightly(&dated))
        );
        assert_eq!(with(&[&other_day, &plain]), Choice::Use(plain.clone()));
        assert_eq!(with(&[&other_day]), Choice::AddNightly);
        let sourceless = Compiler {
            has_sources: false,
            ..plain
        };
        assert_eq!(with(&[&sourceless]), Choice::AddNightly);
    }

    #[test]
    fn without_a_nightly_the_distribution_serves() {
        let debian = compiler(Origin::Distribution, 96);
        for rustup in [Rustup::Absent, Rustup::Refused] {
            let machine = Machine {
                rustup,
                distribution: Some(debian.clone()),
                ..bare()
            };
            assert_eq!(choose(&machine), Choice::Use(debian.clone()));
        }
    }

    #[test]
    fn packages_are_installed_only_when_new_enough() {
        let with = |offers| {
            choose(&Machine {
                rustup: Rustup::Refused,
                offers,
                ..bare()
            })
        };
        let (web, plain) = (PACKAGE_SETS[0], PACKAGE_SETS[1]);
        assert_eq!(
            with(offers(&[("rustc", 63), ("rustc-web", 96)], false)),
            Choice::InstallPackages(web)
        );
        assert_eq!(
            with(offers(&[("rustc", 99), ("rustc-web", 85)], false)),
            Choice::InstallPackages(plain)
        );
        assert_eq!(
            with(offers(&[("rustc", 63), ("rustc-web", 85)], false)),
            Choice::RefreshLists
        );
        assert_eq!(with(offers(&[], false)), Choice::RefreshLists);
        assert!(matches!(with(offers(&[], true)), Choice::GiveUp(_)));
    }

    #[test]
    fn a_distribution_compiler_without_sources_is_completed() {
        let half = Compiler {
            has_sources: false,
            ..compiler(Origin::Distribution, 96)
        };
        let machine = Machine {
            distribution: Some(half),
            offers: offers(&[("rustc-web", 96)], true),
            ..bare()
        };
        assert_eq!(choose(&machine), Choice::InstallPackages(PACKAGE_SETS[0]));
    }

    #[test]
    fn giving_up_says_why_and_what_to_do() {
        let old = compiler(Origin::Distribution, 63);
        let Choice::GiveUp(text) = choose(&Machine {
            distribution: Some(old),
            ..bare()
        }) else {
            panic!("1.63 was accepted");
        };
        for part in [
            "there is no rustup",
            "it is 1.63, older than 1.95",
            "rustup toolchain install",
        ] {
            assert!(text.contains(part), "no {part:?} in: {text}");
        }
    }

    #[test]
    fn every_reason_to_refuse_a_compiler() {
        let fit = compiler(Origin::Distribution, 96);
        assert_eq!(fit.unfit(), None);
        let llvm = Compiler {
            version: Version {
                llvm_major: 19,
                ..fit.version.clone()
            },
            ..fit.clone()
        };
        assert!(llvm.unfit().is_some_and(|why| why.contains("LLVM 19")));
        let lonely = Compiler {
            cargo: None,
            ..fit.clone()
        };
        assert!(lonely.unfit().is_some_and(|why| why.contains("cargo")));
        assert_eq!(fit.rustc, Path::new("/usr/bin/rustc"));
    }
}
