//! Scenario files: objects in, and what a client on this node, or one from outside, gets at each address.
//!
//! ```yaml
//! scenario: One sentence that says what happens.
//! rows: [E3]                    # of the specification; may be left out
//! addresses: [192.168.0.2]      # of this node's devices, if they are others than usual
//! nodePortAddresses: [primary]  # the agent's flag
//! scheduler: rr                 # the same
//! steps:
//! - when: a sentence that says what is different now
//!   apply: [manifests]          # whole objects
//!   patch: [manifests]          # merged into what is there, as `kubectl patch --type merge` does
//!   delete: [Service/web]       # of the namespace `default`
//!   problems: [lines]           # what the objects are told off for
//!   expect: |
//!     10.96.0.10:80/tcp -> 10.1.0.5:8080, 10.1.0.6:8080
//!     192.0.2.1:80/tcp from pod, node -> 10.1.0.5:8080
//!     192.0.2.1:80/tcp from outside -> drop
//! ```
//!
//! This node is `here`. A line without `from` is about all three clients: a pod of this node, a process of
//! this node, and a client from outside. (One about a loopback address is about processes of this node:
//! nobody else gets there.) An IP address may be given as a client too; it is outside. What is to come is
//! a list of endpoints, `reject`, `drop`, `no such port` (a ClusterIP without it) or `not ours`.
//! `expect: nothing` is an empty list. Whatever a step doesn't list must not be served.
//!
//! Every file is played three times: change by change; all changes of a step at once, by an agent that
//! is restarted after each step; and by an agent that finds the state of the step when it starts. All must
//! come to the same. TCP connections are begun at every step, and go on where they went at every later
//! one. In the end all objects are deleted, and nothing may be left.

mod cluster;
mod expect;
mod file;
mod here;

use std::{collections::BTreeSet, fmt::Write as _, path::Path};

use anyhow::{Context as _, Result, ensure};

use self::{
    cluster::Cluster,
    expect::{Client, Expected},
    file::{File, Step},
    here::{Here, Site},
};

/// Plays a file.
pub fn play(path: &Path) -> Result<()> {
    let text = std::fs::read_to_string(path)?;
    play_text(&text).with_context(|| path.display().to_string())
}

/// Plays the text of a file.
pub fn play_text(text: &str) -> Result<()> {
    let file = File::parse(text)?;
    let site = Site::new(
        &file.addresses,
        &file.node_port_addresses,
        file.scheduler.as_deref(),
    )?;
    let mut play = Play::new(&file, &site)?;
    for (number, (step, expected)) in file.steps.iter().zip(&play.expected.clone()).enumerate() {
        play.step(step, expected)
            .with_context(|| format!("step {}, when {}", number + 1, step.when))?;
    }
    play.end().context("after everything was deleted")
}

struct Play<'a> {
    site: &'a Site,
    cluster: Cluster,
    expected: Vec<Expected>,
    /// Everybody who is to dial in this file, and where.
    questions: BTreeSet<expect::Question>,
    by_change: Here,
    restarted: Here,
}

impl<'a> Play<'a> {
    fn new(file: &File, site: &'a Site) -> Result<Self> {
        let expected = file
            .steps
            .iter()
            .map(|step| {
                Expected::parse(&step.expect).with_context(|| format!("when {}", step.when))
            })
            .collect::<Result<Vec<_>>>()?;
        let questions = expected.iter().flat_map(Expected::questions).collect();
        let cluster = Cluster::default();
        Ok(Self {
            by_change: Here::start(site, &cluster)?,
            restarted: Here::start(site, &cluster)?,
            site,
            cluster,
            expected,
            questions,
        })
    }

    fn step(&mut self, step: &Step, expected: &Expected) -> Result<()> {
        let (mut events, mut problems) = (Vec::new(), Vec::new());
        for change in step.changes()? {
            let ingested = self.cluster.change(change)?;
            problems.extend(ingested.problems.iter().map(ToString::to_string));
            events.extend(ingested.event);
        }
        ensure!(
            problems == step.problems,
            "problems of the objects: {problems:#?}\nexpected: {:#?}",
            step.problems
        );
        for event in &events {
            self.by_change.apply([event.clone()])?;
        }
        self.restarted.apply(events)?;
        let mut fresh = Here::start(self.site, &self.cluster)?;
        for (who, here) in [
            ("an agent that follows every change", &mut self.by_change),
            (
                "an agent that is told of all changes at once",
                &mut self.restarted,
            ),
            ("an agent that starts", &mut fresh),
        ] {
            compare(here, expected, &self.questions).context(who)?;
            here.connections_go_on().context(who)?;
            here.connect_all(expected);
        }
        self.restarted.restart(self.site, &self.cluster)
    }

    fn end(&mut self) -> Result<()> {
        let events = self.cluster.clear();
        for here in [&mut self.by_change, &mut self.restarted] {
            here.apply(events.clone())?;
            here.connections_go_on()?;
            here.is_empty()?;
        }
        Ok(())
    }
}

fn compare(
    here: &mut Here,
    expected: &Expected,
    questions: &BTreeSet<expect::Question>,
) -> Result<()> {
    let served = here.frontends();
    let usual = served
        .iter()
        .flat_map(|address| Client::USUAL.map(|client| (*address, client)));
    let all: BTreeSet<_> = questions.iter().copied().chain(usual).collect();
    let mut differences = String::new();
    for question in all {
        let found = here.outcome(&question);
        if !expected.admits(&question, &found) {
            let (address, client) = question;
            let wanted = expected.of(&question);
            let _ = write!(
                differences,
                "\n  {} from {client} -> {wanted}\n      but it is: {found}",
                expect::show(&address)
            );
        }
    }
    ensure!(differences.is_empty(), "expected:{differences}");
    Ok(())
}
