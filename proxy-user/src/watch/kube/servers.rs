//! Which API server to ask, and which one next: those that were configured, then those that
//! `default/kubernetes` had for endpoints when one last answered. Pure.

use std::net::SocketAddr;

use hyper::Uri;

/// An API server, and whom its certificate has to name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) url: Uri,
    /// `None`: the host of the URL.
    pub(super) tls_name: Option<String>,
}

#[derive(Debug)]
pub(super) struct Servers {
    /// At least one.
    configured: Vec<Server>,
    remembered: Vec<Server>,
    current: Server,
}

impl Servers {
    /// `first` and `others` are asked in this order.
    pub(super) fn new(first: Server, others: Vec<Server>) -> Self {
        let mut configured = vec![first.clone()];
        configured.extend(others);
        Self {
            configured,
            remembered: Vec::new(),
            current: first,
        }
    }

    pub(super) fn current(&self) -> &Server {
        &self.current
    }

    pub(super) fn count(&self) -> usize {
        self.all().count()
    }

    fn all(&self) -> impl Iterator<Item = &Server> {
        self.configured.iter().chain(&self.remembered)
    }

    /// From the one that is asked now to the one after it.
    pub(super) fn go_on(&mut self) {
        let at = self.all().position(|server| *server == self.current);
        let next = at.map_or(0, |at| (at + 1) % self.count());
        let next = self.all().nth(next).cloned();
        self.current = next.unwrap_or_else(|| self.current.clone());
    }

    /// These are API servers, too. Their certificates name what the first configured one's does: all
    /// speak for one cluster. An order of one's own keeps the nodes of a cluster from the same one.
    pub(super) fn remember(&mut self, addresses: &[SocketAddr]) {
        let Some(first) = self.configured.first() else {
            return;
        };
        // Behind a path there is a proxy for clusters, which its endpoints don't know of.
        let (Some(scheme), "/" | "") = (first.url.scheme_str(), first.url.path()) else {
            return;
        };
        let tls_name = first.tls_name.clone().or_else(|| host(&first.url));
        let remembered = addresses.iter().filter_map(|address| {
            let url = format!("{scheme}://{address}").parse::<Uri>().ok()?;
            let known = |server: &Server| server.url.authority() == url.authority();
            (!self.configured.iter().any(known)).then(|| Server {
                url,
                tls_name: tls_name.clone(),
            })
        });
        self.remembered = remembered.collect();
    }
}

/// Without the brackets of an IPv6 address.
fn host(url: &Uri) -> Option<String> {
    let host = url.host()?;
    Some(host.trim_matches(['[', ']']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str) -> Server {
        Server {
            url: url.parse().unwrap(),
            tls_name: None,
        }
    }

    fn round(servers: &mut Servers) -> Vec<(String, String)> {
        (0..servers.count())
            .map(|_| {
                let Server { url, tls_name } = servers.current().clone();
                servers.go_on();
                (url.to_string(), tls_name.unwrap_or_default())
            })
            .collect()
    }

    fn pair(url: &str, name: &str) -> (String, String) {
        (url.into(), name.into())
    }

    #[test]
    fn they_are_asked_in_turn_the_remembered_ones_last_and_by_the_name_of_the_first() {
        let first = server("https://api.example.org:6443");
        let mut servers = Servers::new(first, vec![server("https://10.0.0.2:6443")]);
        servers.remember(
            &["10.0.0.2:6443", "10.0.0.3:6443", "[fd00::4]:6443"].map(|a| a.parse().unwrap()),
        );
        let all = [
            pair("https://api.example.org:6443/", ""),
            pair("https://10.0.0.2:6443/", ""),
            pair("https://10.0.0.3:6443/", "api.example.org"),
            pair("https://[fd00::4]:6443/", "api.example.org"),
        ];
        assert_eq!(round(&mut servers), all);
        assert_eq!(round(&mut servers), all);
    }

    #[test]
    fn a_name_that_is_configured_counts_for_all_and_an_address_is_one() {
        let mut first = server("https://[fd00::1]:443");
        let mut servers = Servers::new(first.clone(), vec![]);
        servers.remember(&["10.0.0.3:6443".parse().unwrap()]);
        assert_eq!(
            round(&mut servers)[1],
            pair("https://10.0.0.3:6443/", "fd00::1")
        );
        first.tls_name = Some("kubernetes".into());
        let mut servers = Servers::new(first, vec![]);
        servers.remember(&["10.0.0.3:6443".parse().unwrap()]);
        assert_eq!(
            round(&mut servers)[1],
            pair("https://10.0.0.3:6443/", "kubernetes")
        );
    }

    #[test]
    fn behind_a_path_nothing_is_remembered() {
        let mut servers = Servers::new(server("https://rancher/k8s/clusters/x"), vec![]);
        servers.remember(&["10.0.0.3:6443".parse().unwrap()]);
        assert_eq!(servers.count(), 1);
    }

    #[test]
    fn the_current_one_stays_when_what_is_remembered_changes() {
        let mut servers = Servers::new(server("https://10.0.0.1"), vec![]);
        servers.remember(&["10.0.0.3:6443".parse().unwrap()]);
        servers.go_on();
        servers.remember(&["10.0.0.4:6443".parse().unwrap()]);
        assert_eq!(servers.current().url.host(), Some("10.0.0.3"));
        servers.go_on();
        assert_eq!(servers.current().url.host(), Some("10.0.0.1"));
        servers.go_on();
        assert_eq!(servers.current().url.host(), Some("10.0.0.4"));
    }
}
