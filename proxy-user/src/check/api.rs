//! The API server, and what it lets us do.

use super::finding::{Group, Report};

#[derive(Clone, Debug)]
pub enum Api {
    /// --manifests: none is asked.
    Manifests(String),
    /// There is no configuration to reach one by, or it is broken.
    None(String),
    Server {
        url: String,
        /// What it calls its version, or why it can't be asked.
        answered: Result<String, String>,
        /// It is reached by the ClusterIP of default/kubernetes, which needs a proxy itself.
        by_cluster_ip: bool,
        /// What it said to each right.
        rights: Vec<(Right, Granted)>,
    },
}

/// Verb and resource, and what is lost without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    pub group: &'static str,
    pub resource: &'static str,
    pub verb: &'static str,
    /// `None`: nothing is served without.
    pub without: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Granted {
    Yes,
    No,
    /// It doesn't answer such questions.
    Unknown(String),
}

const fn needed(group: &'static str, resource: &'static str, verb: &'static str) -> Right {
    Right {
        group,
        resource,
        verb,
        without: None,
    }
}

const fn useful(
    group: &'static str,
    resource: &'static str,
    verb: &'static str,
    without: &'static str,
) -> Right {
    Right {
        without: Some(without),
        ..needed(group, resource, verb)
    }
}

/// What the agent asks of the API.
pub(super) const RIGHTS: [Right; 11] = [
    needed("", "services", "list"),
    needed("", "services", "watch"),
    needed("discovery.k8s.io", "endpointslices", "list"),
    needed("discovery.k8s.io", "endpointslices", "watch"),
    needed("", "nodes", "list"),
    needed("", "nodes", "watch"),
    useful("networking.k8s.io", "servicecidrs", "list", NO_CIDRS),
    useful("networking.k8s.io", "servicecidrs", "watch", NO_CIDRS),
    useful("events.k8s.io", "events", "create", NO_EVENTS),
    useful("events.k8s.io", "events", "patch", NO_EVENTS),
    useful(
        "",
        "services",
        "get",
        "`kubectl describe service` doesn't show Events",
    ),
];
const NO_CIDRS: &str = "unused ClusterIPs are not refused";
const NO_EVENTS: &str = "Events are not told";

pub(super) fn judge(api: &Api, report: &mut Report) {
    let group = Group::Api;
    let (url, answered, by_cluster_ip, rights) = match api {
        Api::Manifests(folder) => {
            let found = format!("not asked: the manifests in {folder} are served");
            report.ok(group, "API server", found);
            return;
        }
        Api::None(reason) => {
            let found = format!("not looked at: {reason}");
            report.note(group, "API server", found);
            return;
        }
        Api::Server {
            url,
            answered,
            by_cluster_ip,
            rights,
        } => (url, answered, *by_cluster_ip, rights),
    };
    match answered {
        Ok(version) if by_cluster_ip => report.warn(
            group,
            "API server",
            format!("{url} answers ({version}), by its ClusterIP: without a kube-proxy or kube-portal on this node nobody reaches it there"),
            "name its own address with --apiserver https://ADDRESS:6443",
        ),
        Ok(version) => report.ok(group, "API server", format!("{url} answers ({version})")),
        Err(reason) => {
            let found = format!("{url} can't be asked: {reason}");
            let remedy = if by_cluster_ip {
                "that is its ClusterIP, which needs a proxy itself: name its own address with --apiserver https://ADDRESS:6443"
            } else {
                "check the address (--apiserver, --kubeconfig), the way there and the credentials"
            };
            report.fail(group, "API server", found, remedy);
        }
    }
    granted(rights, report);
}

fn granted(rights: &[(Right, Granted)], report: &mut Report) {
    let group = Group::Api;
    let mut all = !rights.is_empty();
    for (right, granted) in rights {
        let Right {
            group: api_group,
            resource,
            verb,
            without,
        } = right;
        let what = if api_group.is_empty() {
            format!("right to {verb} {resource}")
        } else {
            format!("right to {verb} {resource}.{api_group}")
        };
        match granted {
            Granted::Yes => {}
            Granted::No => {
                all = false;
                let remedy = format!("grant {verb} on {resource} in the ClusterRole");
                match without {
                    None => {
                        report.fail(group, what, "not granted: nothing would be served", remedy)
                    }
                    Some(without) => {
                        report.warn(group, what, format!("not granted: {without}"), remedy);
                    }
                }
            }
            Granted::Unknown(reason) => {
                let found = format!("the server doesn't say: {reason}");
                report.note(group, "rights", found);
                return;
            }
        }
    }
    if all {
        report.ok(group, "rights", "all are granted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(answered: Result<&str, &str>, by_cluster_ip: bool, granted: Granted) -> Api {
        Api::Server {
            url: "https://10.96.0.1".to_owned(),
            answered: answered.map(str::to_owned).map_err(str::to_owned),
            by_cluster_ip,
            rights: RIGHTS
                .iter()
                .map(|right| (*right, granted.clone()))
                .collect(),
        }
    }

    fn judged(api: &Api) -> Report {
        let mut report = Report::default();
        judge(api, &mut report);
        report
    }

    #[test]
    fn a_server_that_answers_and_grants_everything_is_fine() {
        let report = judged(&server(Ok("v1.36.2"), false, Granted::Yes));
        assert!(report.bad().is_empty());
        assert_eq!(report.findings.len(), 2);
    }

    #[test]
    fn a_server_that_is_only_reached_by_its_cluster_ip_is_told_with_the_flag() {
        for (answered, level) in [(Ok("v1"), "warn"), (Err("timed out"), "FAIL")] {
            let report = judged(&server(answered, true, Granted::Yes));
            assert_eq!(report.bad(), [format!("{level} API server")]);
            let remedy = report.about("API server").remedy.as_deref().unwrap();
            assert!(remedy.contains("--apiserver"), "{remedy}");
        }
        let report = judged(&server(Err("refused"), false, Granted::Yes));
        assert_eq!(report.bad(), ["FAIL API server"]);
    }

    #[test]
    fn a_right_that_is_not_granted_is_told_with_what_is_lost() {
        let report = judged(&server(Ok("v1"), false, Granted::No));
        assert_eq!(
            report.bad(),
            [
                "FAIL right to list services",
                "FAIL right to watch services",
                "FAIL right to list endpointslices.discovery.k8s.io",
                "FAIL right to watch endpointslices.discovery.k8s.io",
                "FAIL right to list nodes",
                "FAIL right to watch nodes",
                "warn right to list servicecidrs.networking.k8s.io",
                "warn right to watch servicecidrs.networking.k8s.io",
                "warn right to create events.events.k8s.io",
                "warn right to patch events.events.k8s.io",
                "warn right to get services",
            ]
        );
    }

    #[test]
    fn a_server_that_does_not_say_and_no_server_at_all_are_noted() {
        let unknown = Granted::Unknown("404".to_owned());
        assert_eq!(
            judged(&server(Ok("v1"), false, unknown)).bad(),
            ["note rights"]
        );
        assert_eq!(
            judged(&Api::None("none".to_owned())).bad(),
            ["note API server"]
        );
        assert!(judged(&Api::Manifests("/m".to_owned())).bad().is_empty());
    }
}
