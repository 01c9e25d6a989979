//! A plain HTTP client: what was answered, byte for byte.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::netns::Netns;

const TIMEOUT: Duration = Duration::from_secs(5);

/// An answer as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// `HTTP/1.1 200 OK`.
    pub status: String,
    /// `Name: value`, sorted, without `Date` and `Connection`.
    pub headers: Vec<String>,
    /// What follows the empty line.
    pub body: String,
}

impl Reply {
    /// The status as a number, 0 if there is none.
    pub fn code(&self) -> u16 {
        let code = self.status.split(' ').nth(1);
        code.and_then(|code| code.parse().ok()).unwrap_or(0)
    }
}

/// GET from inside a namespace. The error's root is that of the socket.
pub fn get(netns: &Netns, to: SocketAddr, path: &str) -> Result<Reply> {
    ask(netns, to, "GET", path)
}

/// Any method.
pub fn ask(netns: &Netns, to: SocketAddr, method: &str, path: &str) -> Result<Reply> {
    ask_with(netns, to, method, path, "")
}

/// With more headers, each a line that ends in `\r\n`.
pub fn ask_with(
    netns: &Netns,
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
) -> Result<Reply> {
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n{headers}\r\n");
    let answer = netns.enter(|| -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })??;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("no head in {answer:?}"))?;
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default().to_owned();
    let mut headers: Vec<String> = lines
        .filter(|line| !line.starts_with("Date: ") && !line.starts_with("Connection: "))
        .map(str::to_owned)
        .collect();
    headers.sort();
    Ok(Reply {
        status,
        headers,
        body: body.to_owned(),
    })
}

/// Whether nobody listens there.
pub fn is_refused(result: &Result<Reply>) -> bool {
    result.as_ref().is_err_and(|error| {
        error
            .root_cause()
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    })
}
