//! What a test holds of things open in a pod.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Deref;
use std::time::Duration;

use anyhow::Result;

use super::client::{Probe, TIMEOUT};
use super::{Answer, ChurnReport, Connected, Request, Response};
use crate::wait;

/// A server in a pod; serves until stopped, also when this is dropped.
#[derive(Debug)]
pub struct Server<'a> {
    pub(super) probe: &'a Probe,
    pub(super) id: u64,
    /// Where it listens.
    pub local: SocketAddr,
}

impl Server<'_> {
    /// Stops listening; open connections are served on.
    pub fn stop(self) -> Result<()> {
        self.probe
            .ask(Request::StopServe { server: self.id }, Duration::ZERO)
            .map(drop)
    }
}

/// An open TCP connection of a pod; stays open until closed.
#[derive(Debug)]
pub struct Connection<'a> {
    pub(super) probe: &'a Probe,
    pub(super) connected: Connected,
}

/// What connect() and getpeername() said.
impl Deref for Connection<'_> {
    type Target = Connected;

    fn deref(&self) -> &Connected {
        &self.connected
    }
}

impl Connection<'_> {
    /// Sends a line, reads the answer.
    pub fn exchange(&self, line: &str) -> Result<Answer> {
        let connection = self.connected.id;
        let request = Request::Exchange {
            connection,
            line: line.into(),
            timeout: TIMEOUT,
        };
        let Response::Answer(answer) = self.probe.ask(request, TIMEOUT)? else {
            return Err(self.probe.unexpected());
        };
        Ok(answer)
    }

    /// getpeername(), asked again.
    pub fn peer_name(&self) -> Result<SocketAddr> {
        self.probe.address(Request::PeerName {
            connection: self.connected.id,
        })
    }

    /// Closes it.
    pub fn close(self) -> Result<()> {
        self.probe
            .ask(
                Request::Close {
                    connection: self.connected.id,
                },
                Duration::ZERO,
            )
            .map(drop)
    }
}

/// An open UDP socket of a pod; stays open until closed.
#[derive(Debug)]
pub struct Udp<'a> {
    pub(super) probe: &'a Probe,
    pub(super) id: u64,
    /// getsockname() after it was opened.
    pub local: SocketAddr,
}

impl Udp<'_> {
    /// Sends to the connected address and receives the answer.
    pub fn exchange(&self, payload: &str) -> Result<Answer> {
        self.exchange_within(None, payload, TIMEOUT)
    }

    /// Sends to an address and receives the answer.
    pub fn exchange_with(&self, to: impl Into<SocketAddr>, payload: &str) -> Result<Answer> {
        self.exchange_within(Some(to.into()), payload, TIMEOUT)
    }

    /// The same within a time of one's own.
    pub fn exchange_within(
        &self,
        to: Option<SocketAddr>,
        payload: &str,
        timeout: Duration,
    ) -> Result<Answer> {
        let payload = payload.into();
        let request = Request::UdpExchange {
            socket: self.id,
            to,
            payload,
            timeout,
        };
        let Response::Answer(answer) = self.probe.ask(request, timeout)? else {
            return Err(self.probe.unexpected());
        };
        Ok(answer)
    }

    /// getpeername().
    pub fn peer_name(&self) -> Result<SocketAddr> {
        self.probe.address(Request::UdpPeerName { socket: self.id })
    }

    /// connect() to another address.
    pub fn connect(&self, to: impl Into<SocketAddr>) -> Result<()> {
        let request = Request::UdpConnect {
            socket: self.id,
            to: to.into(),
        };
        self.probe.ask(request, Duration::ZERO).map(drop)
    }

    /// connect() to AF_UNSPEC: it has no peer any more.
    pub fn disconnect(&self) -> Result<()> {
        self.probe
            .ask(Request::UdpDisconnect { socket: self.id }, Duration::ZERO)
            .map(drop)
    }

    /// Closes it.
    pub fn close(self) -> Result<()> {
        self.probe
            .ask(Request::UdpClose { socket: self.id }, Duration::ZERO)
            .map(drop)
    }
}

/// Connections without end from a pod; goes on until stopped.
#[derive(Debug)]
pub struct Churn<'a> {
    pub(super) probe: &'a Probe,
    pub(super) id: u64,
}

impl Churn<'_> {
    /// From the next connection on, only these names are right.
    pub fn allow<S: Into<String>>(&self, allowed: impl IntoIterator<Item = S>) -> Result<()> {
        let allowed: BTreeSet<String> = allowed.into_iter().map(Into::into).collect();
        self.probe
            .ask(
                Request::ChurnAllow {
                    churn: self.id,
                    allowed,
                },
                Duration::ZERO,
            )
            .map(drop)
    }

    /// What has happened so far.
    pub fn report(&self) -> Result<ChurnReport> {
        self.answer(Request::ChurnReport { churn: self.id })
    }

    /// Waits until so many connections were tried from now on.
    pub fn wait_attempts(&self, more: u64, timeout: Duration) -> Result<ChurnReport> {
        let goal = self.report()?.attempts + more;
        let what = format!("{more} more connections of {}", self.probe.pod);
        wait::until(&what, timeout, || match self.report() {
            Ok(report) if report.attempts < goal => None,
            done => Some(done),
        })?
    }

    /// Ends it.
    pub fn stop(self) -> Result<ChurnReport> {
        self.answer(Request::ChurnStop { churn: self.id })
    }

    fn answer(&self, request: Request) -> Result<ChurnReport> {
        let Response::Churn(report) = self.probe.ask(request, TIMEOUT)? else {
            return Err(self.probe.unexpected());
        };
        Ok(report)
    }
}
