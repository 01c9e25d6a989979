//! The HTTP side: routes, and bodies that never end.

use std::{
    collections::btree_map::Entry, convert::Infallible, net::TcpListener, sync::Arc, time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_rustls::TlsAcceptor;

use super::{
    Failure, Gone, Shared,
    objects::{Expired, Query, RESOURCES, Resource, Told, gone_event, status},
    selector::Selector,
};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Until the server is dropped.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    let mut ended = shared.cuts.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ended.wait_for(Option::is_none) => return,
        };
        let Ok((connection, _)) = accepted else {
            continue;
        };
        // As Go's server: an event doesn't wait until the one before it is acknowledged.
        let _as_it_is = connection.set_nodelay(true);
        let shared = shared.clone();
        let mut cuts = shared.cuts.subscribe();
        let Some(generation) = *cuts.borrow_and_update() else {
            return;
        };
        *shared.state().connections.entry(generation).or_default() += 1;
        tokio::spawn(async move {
            let connection = speak(connection, &shared);
            // To be cut is to be dropped, in the middle of a chunked body.
            tokio::select! {
                biased;
                _ = cuts.changed() => {}
                () = connection => {}
            }
            let mut state = shared.state();
            if let Entry::Occupied(mut open) = state.connections.entry(generation) {
                *open.get_mut() -= 1;
                if *open.get() == 0 {
                    open.remove();
                }
            }
        });
    }
}

/// Until the client has had enough, or doesn't like us.
async fn speak(connection: TcpStream, shared: &Arc<Shared>) {
    let service = service_fn(|request| answer(request, shared.clone()));
    let http = hyper::server::conn::http1::Builder::new();
    let tls = shared.state().tls.clone();
    let _ended = match tls {
        None => {
            let plain = TokioIo::new(connection);
            http.serve_connection(plain, service).await.is_ok()
        }
        Some(tls) => match TlsAcceptor::from(tls).accept(connection).await {
            Ok(private) => {
                let private = TokioIo::new(private);
                http.serve_connection(private, service).await.is_ok()
            }
            Err(_) => false,
        },
    };
}

async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let failure = {
        let mut state = shared.state();
        state.log.push(format!("{} {}", parts.method, parts.uri));
        state.asked.push(std::time::Instant::now());
        state.fail.take_if(|failure| failure.left == 0);
        state.fail.as_mut().map(|failure| {
            failure.left -= 1;
            failure.clone()
        })
    };
    not_hanging(&mut shared.hang.subscribe()).await;
    if let Some(failure) = failure {
        return Ok(failed(failure));
    }
    let known = shared.state().token.as_ref().is_none_or(|token| {
        let shown = parts.headers.get(header::AUTHORIZATION);
        shown.is_some_and(|shown| *shown == *format!("Bearer {token}"))
    });
    if !known {
        return Ok(refused(401, "Unauthorized", "Unauthorized"));
    }
    let Some(target) = Target::of(parts.uri.path()) else {
        return Ok(refused(404, "NotFound", "no such resource"));
    };
    let withheld = shared.state().withheld.clone();
    if let Some((_, status)) = withheld.filter(|(plural, _)| plural == target.resource.plural) {
        return Ok(match status {
            // A kind that a server doesn't have is a path that it doesn't have.
            404 => plain(StatusCode::NOT_FOUND, "404 page not found\n"),
            _ => refused(status, "Forbidden", "not for this client"),
        });
    }
    let is_free = |held: &Option<String>| held.as_deref() != Some(target.resource.plural);
    // An error means that the server has ended.
    let _ = shared.held.subscribe().wait_for(is_free).await;
    if parts.method == Method::POST && target.resource.plural == "events" {
        let object = match body.collect().await {
            Ok(body) => serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null),
            Err(_) => Value::Null,
        };
        shared.state().store.posted.push(object.clone());
        return Ok(json(StatusCode::CREATED, &object));
    }
    if parts.method != Method::GET {
        return Ok(refused(
            405,
            "MethodNotAllowed",
            "only reading is supported",
        ));
    }
    Ok(read(target, &Params::of(parts.uri.query()), &shared))
}

/// What a path is about: a resource, in one or all namespaces, or one object of it.
struct Target {
    resource: Resource,
    namespace: Option<String>,
    name: Option<String>,
}

impl Target {
    fn of(path: &str) -> Option<Self> {
        RESOURCES.iter().find_map(|resource| {
            let rest = path.strip_prefix(resource.root)?.strip_prefix('/')?;
            let parts: Vec<&str> = rest.split('/').collect();
            let (namespace, parts) = match parts[..] {
                ["namespaces", namespace, ref parts @ ..] if resource.namespaced => {
                    (Some(namespace.to_owned()), parts.to_vec())
                }
                _ => (None, parts),
            };
            let name = match parts[..] {
                [plural] if plural == resource.plural => None,
                [plural, name] if plural == resource.plural => Some(name.to_owned()),
                _ => return None,
            };
            Some(Self {
                resource: *resource,
                namespace,
                name,
            })
        })
    }
}

/// The parameters of a request.
struct Params(Vec<(String, String)>);

impl Params {
    fn of(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            Some((decoded(key), decoded(value)))
        });
        Self(pairs.collect())
    }

    fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(k, _)| k == key);
        found
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    fn number(&self, key: &str) -> u64 {
        self.get(key)
            .and_then(|value| value.parse().ok())
            .unwrap_or(0)
    }

    fn is_set(&self, key: &str) -> bool {
        matches!(self.get(key), Some("true" | "1"))
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, tail @ ..]) => {
                let digit = |c: &u8| {
                    char::from(*c)
                        .to_digit(16)
                        .and_then(|d| u8::try_from(d).ok())
                };
                bytes.push(digit(high).unwrap_or(0) << 4 | digit(low).unwrap_or(0));
                rest = tail;
            }
            _ => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn read(target: Target, params: &Params, shared: &Arc<Shared>) -> Response<Body> {
    let mut state = shared.state();
    if let Some(name) = target.name {
        let namespace = target.namespace.unwrap_or_default();
        return match state.store.get(&target.resource, &namespace, &name) {
            Some(object) => json(StatusCode::OK, object),
            None => refused(
                404,
                "NotFound",
                &format!("{} {name} not found", target.resource.plural),
            ),
        };
    }
    let selector = match Selector::parse(params.get("labelSelector"), params.get("fieldSelector")) {
        Ok(selector) => selector,
        Err(reason) => return refused(400, "BadRequest", &reason),
    };
    let query = Query {
        resource: target.resource,
        namespace: target.namespace,
        selector,
    };
    let expired = |Expired| refused(410, "Expired", "too old resource version");
    if !params.is_set("watch") {
        let limit = usize::try_from(params.number("limit")).unwrap_or(0);
        return match state.store.list(&query, limit, params.get("continue")) {
            Ok(list) if state.stalled == Some(query.resource.plural) => {
                let mut half = list.to_string();
                half.truncate(half.floor_char_boundary(half.len() / 2));
                let half = stream::once(async { Ok(Frame::data(Bytes::from(half))) });
                let rest = StreamExt::chain(half, stream::pending());
                response(StatusCode::OK, StreamBody::new(rest).boxed_unsync())
            }
            Ok(list) => {
                let response = json(StatusCode::OK, &list);
                if list["metadata"]["continue"].is_null() {
                    let now = std::time::Instant::now();
                    state.listed.insert(query.resource.plural, now);
                }
                response
            }
            Err(error) => expired(error),
        };
    }
    if state.ends_watches {
        return response(StatusCode::OK, Full::default().boxed_unsync());
    }
    let version = params.number("resourceVersion");
    let bookmarks = params.is_set("allowWatchBookmarks");
    let events = match state.store.watch(query, version, bookmarks) {
        Ok(events) => events,
        Err(expired_version) => match state.gone {
            Gone::Status => return expired(expired_version),
            Gone::Event => {
                let (tx, events) = mpsc::unbounded_channel();
                let _ = tx.send(gone_event());
                events
            }
        },
    };
    let timeout = match params.number("timeoutSeconds") {
        0 => 1800,
        secs => secs,
    };
    let stream = Stream {
        events,
        hang: shared.hang.subscribe(),
        ends: Instant::now() + Duration::from_secs(timeout),
        shared: shared.clone(),
        resource: target.resource,
        bookmarks,
        last: None,
    };
    let frames = stream::unfold(stream, |mut stream| async move {
        let line = stream.next().await?.line();
        stream.shared.state().told = Some(std::time::Instant::now());
        Some((Ok(Frame::data(Bytes::from(line))), stream))
    });
    response(StatusCode::OK, StreamBody::new(frames).boxed_unsync())
}

/// The events of one watch.
struct Stream {
    events: mpsc::UnboundedReceiver<Told>,
    hang: watch::Receiver<bool>,
    ends: Instant,
    shared: Arc<Shared>,
    resource: Resource,
    bookmarks: bool,
    /// Once the time is over, what is sent after the last event.
    last: Option<Told>,
}

impl Stream {
    async fn next(&mut self) -> Option<Told> {
        let event = tokio::select! {
            biased;
            event = self.events.recv() => event.or_else(|| self.last.take()),
            () = sleep_until(self.ends) => {
                self.end();
                self.events.recv().await.or_else(|| self.last.take())
            }
        };
        not_hanging(&mut self.hang).await;
        event
    }

    fn end(&mut self) {
        // Under the lock: the bookmark must not be newer than the last event that is still sent.
        let state = self.shared.state();
        self.events.close();
        if self.bookmarks {
            self.last = Some(state.store.bookmark_of(&self.resource));
        }
    }
}

async fn not_hanging(hang: &mut watch::Receiver<bool>) {
    // An error means that the server has ended.
    let _ = hang.wait_for(|hang| !hang).await;
}

fn failed(failure: Failure) -> Response<Body> {
    let mut response = refused(failure.status, "InternalError", "as the test wishes");
    let wish = failure.retry_after.and_then(|wish| wish.parse().ok());
    if let Some(wish) = wish {
        response.headers_mut().insert(header::RETRY_AFTER, wish);
    }
    response
}

fn refused(code: u16, reason: &str, message: &str) -> Response<Body> {
    let status_code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status_code, &status(code, reason, message))
}

fn json(status: StatusCode, body: &Value) -> Response<Body> {
    response(status, Full::from(body.to_string()).boxed_unsync())
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = response(status, Full::from(text).boxed_unsync());
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

fn response(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
