//! `packaging --binary FILE --output FILE`: the image of a kube-portal that is built. See `packaging`.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use packaging::Image;

/// Writes a container image of nothing but kube-portal and the shared libraries it links: an archive for
/// `docker load`, `podman load`, `ctr images import` and `skopeo copy oci-archive:`.
#[derive(Debug, Parser)]
struct Cli {
    /// The kube-portal to put in, which has to run here.
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// The archive.
    #[arg(long, value_name = "FILE", conflicts_with = "root")]
    output: Option<PathBuf>,
    /// Write the image's files below this directory in place of an archive, for a Dockerfile's COPY.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Its name [default: kube-portal:VERSION]
    #[arg(long, value_name = "NAME")]
    tag: Option<String>,
    /// The time of everything in it, in seconds since 1970.
    #[arg(
        long,
        value_name = "SECONDS",
        env = "SOURCE_DATE_EPOCH",
        default_value_t = 0
    )]
    epoch: u64,
    /// The commit it was built from.
    #[arg(long, value_name = "ID")]
    revision: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match write(&cli) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("packaging: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn write(cli: &Cli) -> anyhow::Result<String> {
    let image = Image::of(&cli.binary)?;
    if let Some(root) = &cli.root {
        image.write_below(root)?;
        return Ok(format!("{}", root.display()));
    }
    let Some(output) = &cli.output else {
        anyhow::bail!("give --output FILE or --root DIR");
    };
    let written = image.write_archive(
        output,
        cli.tag.as_deref(),
        cli.epoch,
        cli.revision.as_deref(),
    )?;
    Ok(format!(
        "{}: {} with {} files, {:.1} MiB ({:.1} MiB unpacked)",
        output.display(),
        written.tag,
        image.files().len(),
        mebibytes(written.bytes),
        mebibytes(image.bytes()),
    ))
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}
