use std::io::{self, IsTerminal as _};

use anstyle::{AnsiColor, Style};
use clap::Args;

use super::{CliError, PinArgs, output};
use crate::{
    loader::Pins,
    trace::{
        Destination, HookName, Kind, Options, Origin, Place, Question, Source, TraceError, Tracer,
        netns_of,
    },
};

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kube-portal trace 10.0.1.5 10.96.0.10:53/udp       a pod's connect()
  kube-portal trace 10.0.1.5 kube-system/dns:dns     the same, by the Service's name
  kube-portal trace 203.0.113.7 192.0.2.1:30080      a client from outside, at a NodePort
  kube-portal trace 203.0.113.7 192.0.2.1:30080 --kernel")]
pub(super) struct TraceArgs {
    /// Who asks: ADDRESS[:PORT], with brackets for IPv6 and a port.
    #[arg(value_name = "SOURCE")]
    source: String,
    /// What is dialled: ADDRESS:PORT[/PROTOCOL] or NAMESPACE/SERVICE[:PORT][/PROTOCOL], of which the
    /// ClusterIP is taken. The protocol is tcp, udp or sctp [default: tcp]
    #[arg(value_name = "DESTINATION")]
    destination: String,
    /// Where it meets kube-portal [default: connect for addresses of this node and its pods, else ingress]
    #[arg(long, value_enum)]
    hook: Option<HookName>,
    /// The device that the packet comes in by, or leaves by [default: where the route leads]
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// A process of the pod that asks: session affinity knows a pod by its network namespace.
    #[arg(long, value_name = "PID")]
    netns: Option<u32>,
    /// Begins the random numbers, so that the same is drawn again.
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Print every lookup as it was asked: map, key, what was found.
    #[arg(long)]
    lookups: bool,
    /// Have the program that is attached to the device run on the same packet, and compare. No device sees
    /// the packet. The flow and the client that the program writes down are taken out again; it counts as
    /// one packet in the counters, as one answer if it is refused, and may take the source port of a flow
    /// that is over. Exit code 7 if the two differ. Programs of sockets can't be run so.
    #[arg(long)]
    kernel: bool,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pins: PinArgs,
}

pub(super) fn execute(args: &TraceArgs) -> Result<(), CliError> {
    let pins = args.pins.pins()?;
    let netns = match args.netns {
        Some(pid) => netns_of(pid).map_err(CliError::Trace)?,
        None => 0,
    };
    super::block_on(trace(args, &pins, netns))?
}

async fn trace(args: &TraceArgs, pins: &Pins, netns: u64) -> Result<(), CliError> {
    let source: Source = args.source.parse().map_err(TraceError::Question)?;
    let wanted: Destination = args.destination.parse().map_err(TraceError::Question)?;
    let mut tracer = Tracer::open(pins).await?;
    let (destination, protocol, others) = tracer.resolve(&wanted, source.ip.is_ipv4())?;
    let question = Question::new(source, destination, protocol).map_err(TraceError::Question)?;
    let (place, mut why) = tracer
        .place(&question, args.hook, args.device.as_deref())
        .await?;
    if args.hook.is_none() && args.device.is_none() {
        why.push_str(" (assumed; see --hook)");
    }
    let options = Options {
        seed: args.seed.unwrap_or_else(|| fastrand::u64(..)),
        netns,
    };
    let mut notes = Vec::new();
    if !others.is_empty() {
        notes.push(format!(
            "the Service is at other addresses, too: {}",
            others.join(", ")
        ));
    }
    if args.netns.is_some() && !matches!(place, Place::Socket(_, Origin::Pod)) {
        notes.push("--netns is for connect() and sendto() of a pod; it was not used".to_owned());
    }
    let story = tracer.trace(question, place, options)?;
    let mut report = tracer.report(&story, &why, &notes);
    if let Some(sequel) = tracer.sequel(&story, options).await? {
        report.add_sequel(sequel);
    }
    let mut failed = Ok(());
    if args.kernel {
        match tracer.run_kernel(&story, options) {
            Ok(run) => {
                if run.agreement.is_difference() {
                    let program_id = run.program_id;
                    failed = Err(CliError::KernelDiffers { program_id });
                }
                report.set_kernel(run);
            }
            // The story is worth a look all the same.
            Err(error) => failed = Err(error.into()),
        }
    }
    let text = if args.json {
        output::json(&report)?
    } else {
        let style = style(story.kind());
        report.to_text(output::width(), args.lookups, |line| {
            format!("{style}{line}{style:#}")
        })
    };
    output::print(&text)?;
    failed
}

/// Of the verdict, where somebody watches who wants colour (https://no-color.org).
fn style(kind: Kind) -> Style {
    if output::no_color() || !io::stdout().is_terminal() {
        return Style::new();
    }
    let bold = Style::new().bold();
    match kind {
        Kind::Translated => bold.fg_color(Some(AnsiColor::Green.into())),
        Kind::Untouched => bold,
        Kind::Refused | Kind::Dropped => bold.fg_color(Some(AnsiColor::Red.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::loader::PinError;

    #[test]
    fn exit_codes_say_whose_fault_it_is() {
        let code = |error| CliError::Trace(error).exit_code();
        let wrong = "x".parse::<Source>().expect_err("no source");
        assert_eq!(code(TraceError::Question(wrong)), 2);
        let path = PathBuf::from("/sys/fs/bpf");
        assert_eq!(code(TraceError::Pin(PinError::Nothing { path })), 4);
        assert_eq!(
            code(TraceError::Kernel("nothing is attached".to_owned())),
            1
        );
        assert_eq!(CliError::KernelDiffers { program_id: 1 }.exit_code(), 7);
    }
}
