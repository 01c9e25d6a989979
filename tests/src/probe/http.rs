//! Just enough HTTP/1.1 for curl, a browser, and ourselves.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Answers requests on one connection until the client closes it or asks for that.
pub(super) fn answer(stream: TcpStream, name: &str) -> io::Result<()> {
    let local = stream.local_addr()?;
    let body = format!("{name} ({})\n", local.ip().to_canonical());
    let mut reader = BufReader::new(stream);
    loop {
        let mut close = false;
        let mut first = true;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end();
            if line.is_empty() && !first {
                break;
            }
            first = false;
            close |= line.eq_ignore_ascii_case("connection: close") || line.ends_with("HTTP/1.0");
        }
        let end = if close { "close" } else { "keep-alive" };
        let length = body.len();
        let text = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
             Connection: {end}\r\n\r\n{body}"
        );
        reader.get_mut().write_all(text.as_bytes())?;
        if close {
            return Ok(());
        }
    }
}

/// GET /; the name is the first word of the body.
pub(super) fn get_name(
    stream: &mut TcpStream,
    to: SocketAddr,
    timeout: Duration,
) -> io::Result<String> {
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(
        format!("GET / HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    Ok(body
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned())
}
