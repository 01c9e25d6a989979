//! One round of requests, and what should come of them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::ask::{Target, ask};
use super::paint;
use super::scene::{BACKENDS, CLIENTS, ECHO, ECHO_PORT, EMPTY, HTTP_PORT, Scene, WEB4, WEB6};
use crate::probe::{Proto, Tally};
use crate::{Pod, net_error, wait};

const REMOVED: &str = "backend-2";
/// An edit should show in the next requests; this is when it has not.
const EDIT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Tour<'a> {
    scene: &'a Scene,
    unexpected: u32,
}

impl<'a> Tour<'a> {
    pub(super) fn new(scene: &'a Scene) -> Self {
        Self {
            scene,
            unexpected: 0,
        }
    }

    pub(super) fn unexpected(&self) -> u32 {
        self.unexpected
    }

    /// Every Service from every client.
    pub(super) fn requests(&mut self) -> Result<()> {
        let all: BTreeSet<&str> = BACKENDS.iter().map(|(name, _)| *name).collect();
        for client in self.clients() {
            for ip in [WEB4, WEB6] {
                self.web(client, ip, &all)?;
            }
            self.echo(client)?;
            self.empty(client);
        }
        self.curl();
        println!();
        Ok(())
    }

    /// Takes one backend out of the YAML, and asks again.
    pub(super) fn edit(&mut self) -> Result<()> {
        let left: BTreeSet<&str> = BACKENDS
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| *name != REMOVED)
            .collect();
        self.scene.write_web_endpoints(|name| name != REMOVED)?;
        let edited = Instant::now();
        println!(
            "{}",
            paint::bold(&format!("{REMOVED} is taken out of the YAML of web"))
        );
        let mut last_reached = None;
        for client in self.clients() {
            for ip in [WEB4, WEB6] {
                let what = format!("{} to reach {REMOVED} no more by {ip}", client.name());
                let quiet = wait::until(&what, EDIT_TIMEOUT, || {
                    let tally = ask(client, web(ip));
                    let reached = tally.map(|tally| tally.of(REMOVED) > 0);
                    if matches!(reached, Ok(true)) {
                        last_reached = Some(edited.elapsed());
                    }
                    reached.map(|reached| (!reached).then_some(())).transpose()
                });
                if let Err(error) = quiet.and_then(|done| done) {
                    self.say(client, "web", &ip.to_string(), Err(error.to_string()));
                }
            }
        }
        let text = match last_reached {
            Some(after) => format!("  no request reached it later than {after:.0?} after the edit"),
            None => "  not one request reached it after the edit".into(),
        };
        println!("{}", paint::dim(&text));
        for client in self.clients() {
            for ip in [WEB4, WEB6] {
                self.web(client, ip, &left)?;
            }
        }
        println!();
        Ok(())
    }

    fn clients(&self) -> [&'a Pod; 2] {
        CLIENTS.map(|name| self.scene.world.pod(name))
    }

    fn web(&mut self, client: &Pod, ip: IpAddr, wanted: &BTreeSet<&str>) -> Result<()> {
        let tally = ask(client, web(ip))?;
        self.judge(
            client,
            "web",
            SocketAddr::from((ip, HTTP_PORT)),
            &tally,
            wanted,
        );
        Ok(())
    }

    fn judge(
        &mut self,
        client: &Pod,
        service: &str,
        to: SocketAddr,
        tally: &Tally,
        wanted: &BTreeSet<&str>,
    ) {
        let fine = tally.failed() == 0 && tally.who() == *wanted;
        let text = tally.to_string();
        self.say(
            client,
            service,
            &to.to_string(),
            if fine { Ok(text) } else { Err(text) },
        );
    }

    fn echo(&mut self, client: &Pod) -> Result<()> {
        let to = SocketAddr::from((ECHO, ECHO_PORT));
        let all = BACKENDS.iter().map(|(name, _)| *name).collect();
        let tally = ask(
            client,
            Target {
                proto: Proto::Udp,
                to,
            },
        )?;
        self.judge(client, "echo", to, &tally, &all);
        let answer = client
            .udp_bound((Ipv4Addr::UNSPECIFIED, 0))
            .and_then(|udp| udp.exchange_with(to, "where from?"));
        let said = match answer {
            Ok(answer) if answer.from == to => Ok(format!("answers come from {}", answer.from)),
            Ok(answer) => Err(format!("{} answered from {}", answer.name, answer.from)),
            Err(error) => Err(error.to_string()),
        };
        self.say(client, "", "", said);
        Ok(())
    }

    fn empty(&mut self, client: &Pod) {
        let to = SocketAddr::from((EMPTY, HTTP_PORT));
        let said = match net_error(client.connect(to)) {
            Ok(error) if error.errno == "ECONNREFUSED" => Ok(format!(
                "refused after {} us, as it has no endpoints",
                error.elapsed_us
            )),
            Ok(error) => Err(error.to_string()),
            Err(error) => Err(format!("{error:#}")),
        };
        self.say(client, "empty", &to.to_string(), said);
    }

    /// The same with a program everybody knows, where it is installed.
    fn curl(&mut self) {
        let client = self.clients()[0];
        let url = format!("http://{WEB4}/");
        let output = client
            .command("curl")
            .and_then(|mut curl| Ok(curl.args(["-sS", "-m", "5", &url]).output()?));
        let Ok(output) = output else { return };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let said = if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr))
        };
        self.say(client, "curl", &url, said);
    }

    fn say(&mut self, client: &Pod, service: &str, to: &str, said: Result<String, String>) {
        let text = match &said {
            Ok(text) => paint::good(text),
            Err(text) => paint::bad(&format!("UNEXPECTED: {text}")),
        };
        self.unexpected += u32::from(said.is_err());
        println!("  {:<9} {service:<6} {to:<18} {text}", client.name());
    }
}

fn web(ip: IpAddr) -> Target {
    Target {
        proto: Proto::Tcp,
        to: (ip, HTTP_PORT).into(),
    }
}
