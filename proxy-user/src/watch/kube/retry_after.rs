//! How long a server asks to be left alone (RFC 9110, 10.2.3).

use std::time::{Duration, SystemTime};

use hyper::{
    HeaderMap, StatusCode,
    header::{AsHeaderName, RETRY_AFTER},
};

/// A wish for more is a mistake, or a clock that is wrong: nobody wants a node that is that far behind.
const LONGEST: Duration = Duration::from_secs(300);

/// What an answer wishes for, if it is a refusal that does.
pub(super) fn wish(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let refused = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
    refused
        .then(|| text(headers, RETRY_AFTER))
        .flatten()
        .and_then(|text| parse(text, now))
}

fn text(headers: &HeaderMap, name: impl AsHeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// Seconds, or a date; at most [`LONGEST`].
fn parse(text: &str, now: SystemTime) -> Option<Duration> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let wish = if digits {
        // A number that is none of ours is a long one.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let at = httpdate::parse_http_date(text).ok()?;
        at.duration_since(now).unwrap_or_default()
    };
    Some(wish.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, text.parse().unwrap());
        // Sun, 06 Nov 1994 08:49:37 GMT
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        wish(StatusCode::from_u16(status).unwrap(), &headers, now)
    }

    #[test]
    fn seconds_and_dates_are_read_and_bounded() {
        let secs = |secs| Some(Duration::from_secs(secs));
        for (text, expected) in [
            ("0", secs(0)),
            ("7", secs(7)),
            (" 7 ", secs(7)),
            ("300", secs(300)),
            ("301", secs(300)),
            ("99999999999999999999999", secs(300)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", secs(10)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", secs(0)),
            ("Sat, 05 Nov 1994 08:49:37 GMT", secs(0)),
            ("Sat, 06 Nov 2094 08:49:37 GMT", secs(300)),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            assert_eq!(of(503, text), expected, "{text}");
        }
    }

    #[test]
    fn only_refusals_count() {
        for status in [429, 500, 503, 504] {
            assert!(of(status, "1").is_some(), "{status}");
        }
        for status in [200, 301, 403, 410] {
            assert_eq!(of(status, "1"), None, "{status}");
        }
        assert_eq!(
            wish(
                StatusCode::SERVICE_UNAVAILABLE,
                &HeaderMap::new(),
                SystemTime::now()
            ),
            None
        );
    }
}
