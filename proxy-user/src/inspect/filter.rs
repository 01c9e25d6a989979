//! Which lines are asked for.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// Nothing given: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    namespace: Option<String>,
    service: Option<Service>,
    address: Option<Address>,
}

/// The name of a Service, as much of it as was given.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Service {
    namespace: Option<String>,
    name: String,
    port: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    Net(IpNet),
    Socket(SocketAddr),
}

/// A value of an option that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FilterError {
    #[error("--namespace {0:?}: no namespace has such a name; write one such as kube-system")]
    Namespace(String),
    #[error(
        "--service {0:?}: write NAME, NAMESPACE/NAME or NAMESPACE/NAME:PORT, such as default/web:http"
    )]
    Service(String),
    #[error(
        "--service {service:?} is in another namespace than --namespace {namespace}; leave one out"
    )]
    Namespaces { service: String, namespace: String },
    #[error(
        "--address {0:?}: write an address, one with a port, or a range, such as 10.96.0.10, 10.96.0.10:80, [fd96::10]:80 or 10.1.0.0/16"
    )]
    Address(String),
}

impl Filter {
    pub(crate) fn parse(
        namespace: Option<&str>,
        service: Option<&str>,
        address: Option<&str>,
    ) -> Result<Self, FilterError> {
        let filter = Self {
            namespace: namespace
                .map(|text| {
                    let named = is_name(text).then(|| text.to_owned());
                    named.ok_or_else(|| FilterError::Namespace(text.to_owned()))
                })
                .transpose()?,
            service: service
                .map(|text| {
                    parse_service(text).ok_or_else(|| FilterError::Service(text.to_owned()))
                })
                .transpose()?,
            address: address
                .map(|text| {
                    parse_address(text).ok_or_else(|| FilterError::Address(text.to_owned()))
                })
                .transpose()?,
        };
        let of_service = filter.service.as_ref().and_then(|s| s.namespace.as_ref());
        if let (Some(text), Some(other), Some(namespace)) = (service, of_service, &filter.namespace)
            && other != namespace
        {
            return Err(FilterError::Namespaces {
                service: text.to_owned(),
                namespace: namespace.clone(),
            });
        }
        Ok(filter)
    }

    /// Whether a line is asked for that is about this Service (`namespace/name:port`, or what stands for an
    /// unknown one) and has these addresses, port 0 standing for none.
    pub(crate) fn admits(
        &self,
        service: &str,
        addresses: impl IntoIterator<Item = SocketAddr>,
    ) -> bool {
        self.admits_service(service)
            && self
                .address
                .as_ref()
                .is_none_or(|wanted| addresses.into_iter().any(|address| wanted.has(address)))
    }

    pub(crate) fn admits_service(&self, full: &str) -> bool {
        if self.namespace.is_none() && self.service.is_none() {
            return true;
        }
        let Some((namespace, rest)) = full.split_once('/') else {
            return false;
        };
        let (name, port) = match rest.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (rest, None),
        };
        self.namespace
            .as_ref()
            .is_none_or(|wanted| wanted == namespace)
            && self.service.as_ref().is_none_or(|wanted| {
                wanted.name == name
                    && wanted.namespace.as_ref().is_none_or(|text| text == namespace)
                    // What is about all of a Service is also about each port of it.
                    && (wanted.port.is_none() || port.is_none() || wanted.port.as_deref() == port)
            })
    }
}

impl Address {
    fn has(&self, address: SocketAddr) -> bool {
        match self {
            Self::Net(net) => net.contains(&address.ip()),
            Self::Socket(wanted) => *wanted == address,
        }
    }
}

/// What the API lets a name have, and a folder of manifests no less.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_alphanumeric() || matches!(c, '-' | '.' | '_'))
}

fn parse_service(text: &str) -> Option<Service> {
    let (namespace, rest) = match text.split_once('/') {
        Some((namespace, rest)) => (Some(namespace), rest),
        None => (None, text),
    };
    let (name, port) = match rest.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (rest, None),
    };
    let parts = [namespace, Some(name), port];
    if !parts.into_iter().flatten().all(is_name) {
        return None;
    }
    Some(Service {
        namespace: namespace.map(str::to_owned),
        name: name.to_owned(),
        port: port.map(str::to_owned),
    })
}

/// The maps know one form of a mapped address, that of IPv4.
fn parse_address(text: &str) -> Option<Address> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(Address::Net(ip.to_canonical().into()));
    }
    if let Ok(socket) = text.parse::<SocketAddr>() {
        let canonical = SocketAddr::new(socket.ip().to_canonical(), socket.port());
        // No line has port 0: it stands for none.
        return (socket.port() != 0).then_some(Address::Socket(canonical));
    }
    Some(Address::Net(text.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> Filter {
        Filter::parse(None, Some(text), None).unwrap()
    }

    fn address(text: &str) -> Filter {
        Filter::parse(None, None, Some(text)).unwrap()
    }

    fn has(text: &str, line: &[&str]) -> bool {
        address(text).admits("?", line.iter().map(|text| text.parse().unwrap()))
    }

    #[test]
    fn a_service_is_named_by_as_much_of_its_name_as_one_likes() {
        for text in ["web", "default/web", "default/web:http", "web:http"] {
            assert!(service(text).admits_service("default/web:http"), "{text}");
        }
        for text in ["we", "other/web", "default/web:dns", "http", "web2"] {
            assert!(!service(text).admits_service("default/web:http"), "{text}");
        }
        assert!(service("default/web").admits_service("default/web"));
        assert!(!service("web").admits_service("?"));
        assert!(Filter::default().admits_service("?"));
    }

    #[test]
    fn a_namespace_is_compared_whole() {
        let filter = Filter::parse(Some("kube"), None, None).unwrap();
        assert!(filter.admits_service("kube/dns:dns"));
        assert!(!filter.admits_service("kube-system/kube:dns"));
        assert!(!filter.admits_service("?"));
    }

    #[test]
    fn an_address_is_looked_for_in_all_of_the_line() {
        let line = ["10.1.1.2:40000", "10.96.0.10:80", "[fd96::10]:80"];
        for text in [
            "10.96.0.10",
            "10.96.0.10:80",
            "10.1.0.0/16",
            "::ffff:10.96.0.10",
            "[::ffff:10.96.0.10]:80",
            "fd96::10",
            "[fd96::10]:80",
            "fd96::/64",
        ] {
            assert!(has(text, &line), "{text}");
        }
        for text in ["10.96.0.1", "10.96.0.10:8", "10.2.0.0/16", "[fd96::10]:8"] {
            assert!(!has(text, &line), "{text}");
        }
        assert!(has("10.96.0.10", &["10.96.0.10:0"]));
        assert!(!has("10.96.0.10", &[]));
    }

    #[test]
    fn what_means_nothing_is_refused_in_a_line_that_says_what_to_write() {
        let refused = |namespace, service, address| {
            let line = Filter::parse(namespace, service, address)
                .unwrap_err()
                .to_string();
            assert!(!line.contains('\n'), "{line}");
            line
        };
        for text in ["", "a b", "a/b"] {
            assert!(refused(Some(text), None, None).contains("--namespace"));
        }
        for text in ["", "/web", "default/", "a/b/c", "web:", "web:a:b"] {
            assert!(refused(None, Some(text), None).contains("default/web:http"));
        }
        for text in [
            "",
            "web",
            "10.96.0.10:0",
            "10.0.0.0/33",
            "fd96::10:80:",
            "10.96.0.10:http",
        ] {
            assert!(refused(None, None, Some(text)).contains("10.1.0.0/16"));
        }
        assert!(refused(Some("a"), Some("b/web"), None).contains("leave one out"));
        assert!(Filter::parse(Some("b"), Some("b/web"), None).is_ok());
    }
}
