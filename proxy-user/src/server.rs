//! Small HTTP servers: where they listen, and how they answer. What is asked of them is answered from
//! memory, so the limits are there for clients that misbehave.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
};

/// A request is sent within this time, on a new connection or an idle one, or the connection ends.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Open connections of one listener; further ones wait in its backlog.
const CONNECTIONS: usize = 256;
const BACKLOG: u32 = 128;
/// Before accepting is tried again when there is no descriptor left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

pub(crate) const JSON: &str = "application/json";
pub(crate) const PLAIN: &str = "text/plain; charset=utf-8";

/// What is answered; `X-Content-Type-Options: nosniff` is always there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: &'static str,
    pub(crate) more: Option<(&'static str, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn ok(content_type: &'static str, body: String) -> Self {
        Self {
            status: StatusCode::OK,
            content_type,
            more: None,
            body,
        }
    }

    /// Of a path that leads nowhere; the text is that of Go's server.
    pub(crate) fn not_found() -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            ..Self::ok(PLAIN, "404 page not found\n".into())
        }
    }

    fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some((name, value)) = self.more
            && let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.try_into())
        {
            headers.insert(name, value);
        }
        response
    }
}

/// What matters of a request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    /// The address of the node that the connection came to.
    pub(crate) at: IpAddr,
    /// What the client can read, as it says; empty if it doesn't.
    pub(crate) accept: String,
}

impl Asked {
    fn of(request: &Request<Incoming>, at: IpAddr) -> Self {
        // A list may come in several lines.
        let accept = request.headers().get_all(ACCEPT).iter();
        let accept: Vec<&str> = accept.filter_map(|line| line.to_str().ok()).collect();
        Self {
            path: request.uri().path().to_owned(),
            at,
            accept: accept.join(","),
        }
    }
}

pub(crate) type Handler = Arc<dyn Fn(Asked) -> BoxFuture<'static, Answer> + Send + Sync>;

/// A handler that has its answer at hand.
pub(crate) fn at_once(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Handler {
    Arc::new(move |asked| Box::pin(std::future::ready(answer(&asked))))
}

/// The sockets of a bind address. An unspecified one stands for both families, as in Go.
pub(crate) fn sockets_of(address: SocketAddr) -> Vec<SocketAddr> {
    if address.ip().is_unspecified() {
        [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
            .map(|ip: IpAddr| SocketAddr::new(ip, address.port()))
            .into()
    } else {
        vec![address]
    }
}

/// A socket of one family; `None` for every IPv6 address on a node without IPv6.
pub(crate) fn listen(address: SocketAddr) -> io::Result<Option<TcpListener>> {
    let bound = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6().and_then(|socket| {
            // The IPv4 address has a socket of its own.
            rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
            Ok(socket)
        }),
    }
    .and_then(|socket| {
        // A port whose last connections are in TIME_WAIT is free.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    });
    match bound {
        Err(error) if is_without_ipv6(address.ip(), &error) => Ok(None),
        bound => bound.map(Some),
    }
}

/// IPv6 may be left out of the kernel, or switched off on every device.
fn is_without_ipv6(ip: IpAddr, error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => {
            error.raw_os_error() == Some(EAFNOSUPPORT)
                || ip.is_unspecified() && error.kind() == io::ErrorKind::AddrNotAvailable
        }
    }
}

/// A listener that is served until this is stopped or dropped; its connections end with it.
#[derive(Debug)]
pub(crate) struct Server(JoinHandle<()>);

impl Server {
    pub(crate) fn start(listener: TcpListener, handler: Handler) -> Self {
        Self(tokio::spawn(serve(listener, handler)))
    }

    /// When this returns the port is free.
    pub(crate) async fn stop(mut self) {
        self.0.abort();
        let _aborted = (&mut self.0).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn serve(listener: TcpListener, handler: Handler) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            // Of one connection, or no descriptor is left; the listener itself never breaks.
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        let handler = handler.clone();
        connections.spawn(async move {
            connection(stream, &handler).await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, handler: &Handler) {
    let Ok(at) = stream.local_addr() else {
        return;
    };
    let service = service_fn(|request: Request<Incoming>| {
        let answer = handler(Asked::of(&request, at.ip()));
        async move { Ok::<_, Infallible>(answer.await.response()) }
    });
    // A client that breaks off is its own business.
    let _ended = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_bind_address_stands_for_both_families() {
        let sockets = |text: &str| {
            let sockets = sockets_of(text.parse().unwrap());
            sockets.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(sockets("127.0.0.1:80"), ["127.0.0.1:80"]);
        assert_eq!(sockets("[fd00::1]:80"), ["[fd00::1]:80"]);
        for both in ["0.0.0.0:80", "[::]:80"] {
            assert_eq!(sockets(both), ["0.0.0.0:80", "[::]:80"]);
        }
    }
}
