//! What is told of backends that are passed over, in words.

use std::fmt;

use log::Level;
use proxy_common::abi::Counter;

use super::policy::{Change, What, Why};
use crate::model::ObjectName;

/// A change, and whose backend it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct News {
    /// `namespace/name:port`.
    pub(super) service: String,
    pub(super) change: Change,
    /// How the last attempt failed, if that was told.
    pub(super) how: Option<Counter>,
}

impl News {
    /// A backend is passed over, for the first time or again.
    pub(crate) fn is_passed_over(&self) -> bool {
        matches!(self.change.what, What::PassedOver { .. })
    }

    /// The reason of the Event that the Service gets: once when it begins, and when it has ended.
    pub(crate) fn reason(&self) -> Option<Reason> {
        match self.change.what {
            What::PassedOver { times: 1, .. } => Some(Reason::PassedOver),
            // Of one backend nobody expects another.
            What::Kept { all: 2.., .. } => Some(Reason::Kept),
            What::Back(Why::Answers) => Some(Reason::Returned),
            What::PassedOver { .. } | What::Kept { .. } | What::Back(_) => None,
        }
    }

    pub(crate) fn level(&self) -> Level {
        match self.change.what {
            What::PassedOver { times: 1, .. }
            | What::Kept { all: 2.., .. }
            | What::Back(Why::Damaged) => Level::Warn,
            What::PassedOver { .. } | What::Back(Why::Answers | Why::TooMany) => Level::Info,
            What::Kept { .. } | What::Back(Why::Left | Why::SwitchedOff | Why::Forgotten) => {
                Level::Debug
            }
        }
    }

    pub(crate) fn service(&self) -> Option<ObjectName> {
        let (name, _) = self.service.rsplit_once(':')?;
        let (namespace, name) = name.split_once('/')?;
        Some(ObjectName::new(namespace, name))
    }

    fn last(&self) -> &'static str {
        match self.how {
            Some(Counter::AttemptRefused) => ", the last was refused",
            Some(Counter::AttemptUnanswered) => ", the last was not answered",
            Some(_) | None => "",
        }
    }
}

/// Which Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    PassedOver,
    Kept,
    Returned,
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.last();
        write!(f, "{} of Service {} ", self.change.at, self.service)?;
        match self.change.what {
            What::PassedOver {
                length,
                times: 1,
                failures,
                ..
            } => write!(
                f,
                "gets no new connections for {} s: {failures} attempts to connect to it failed in a row{last}",
                length.as_secs()
            ),
            What::PassedOver { length, times, .. } => write!(
                f,
                "gets no new connections for {} s: it was tried again and failed{last}; time {times} in a row",
                length.as_secs()
            ),
            What::Kept { failures, all } => write!(
                f,
                "fails ({failures} attempts to connect in a row{last}), and gets new connections all the same: of {all} backends no more than {} are passed over",
                all / 2
            ),
            What::Back(Why::Answers) => write!(f, "answers, and gets new connections again"),
            What::Back(Why::TooMany) => write!(
                f,
                "gets new connections again, though it failed: the Service has fewer backends now"
            ),
            What::Back(Why::Damaged) => write!(
                f,
                "gets new connections again: somebody else had written into the maps that it gets none"
            ),
            What::Back(Why::Left) => write!(f, "is no longer passed over: it is not chosen"),
            What::Back(Why::SwitchedOff) => write!(
                f,
                "is no longer passed over: failover is switched off for the Service"
            ),
            What::Back(Why::Forgotten) => write!(
                f,
                "failed, and was not tried again; it is as good as the others"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn news(what: What, how: Option<Counter>) -> News {
        News {
            service: "shop/web:http".to_owned(),
            change: Change {
                id: 3,
                at: "10.1.1.2:8080".parse().unwrap(),
                what,
            },
            how,
        }
    }

    fn passed_over(times: u32) -> What {
        What::PassedOver {
            until_ns: 7,
            length: Duration::from_secs(10),
            times,
            failures: 3,
        }
    }

    #[test]
    fn the_first_time_says_what_failed_and_for_how_long() {
        let first = news(passed_over(1), Some(Counter::AttemptRefused));
        assert_eq!(
            first.to_string(),
            "10.1.1.2:8080 of Service shop/web:http gets no new connections for 10 s: 3 attempts to connect to it failed in a row, the last was refused"
        );
        assert_eq!(first.service(), Some(ObjectName::new("shop", "web")));
        assert_eq!(first.reason(), Some(Reason::PassedOver));
        assert_eq!(first.level(), Level::Warn);
    }

    #[test]
    fn what_lasts_is_an_event_once_and_a_line_each_time() {
        let again = news(passed_over(2), None);
        assert!(again.is_passed_over());
        assert_eq!((again.reason(), again.level()), (None, Level::Info));
        let kept = |all| news(What::Kept { failures: 4, all }, None);
        assert_eq!(kept(1).reason(), None);
        assert_eq!(kept(3).reason(), Some(Reason::Kept));
        assert!(
            kept(3)
                .to_string()
                .ends_with("of 3 backends no more than 1 are passed over")
        );
        let back = news(What::Back(Why::Answers), None);
        assert_eq!(back.reason(), Some(Reason::Returned));
        assert!(!back.is_passed_over());
    }

    #[test]
    fn a_port_without_a_name_has_a_service_too() {
        let mut unnamed = news(passed_over(1), None);
        unnamed.service = "shop/web:".to_owned();
        assert_eq!(unnamed.service(), Some(ObjectName::new("shop", "web")));
        unnamed.service = String::new();
        assert_eq!(unnamed.service(), None);
    }
}
