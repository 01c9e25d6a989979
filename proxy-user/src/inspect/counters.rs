//! COUNTERS: what came of everything the programs have looked at.

use proxy_common::abi::Counter;
use serde::Serialize;

use crate::cli::output::Row;

#[derive(Debug, Serialize)]
pub(crate) struct CounterRow {
    counter: &'static str,
    value: u64,
    meaning: &'static str,
}

/// Those that have counted anything, then, if `all` are asked for, the others; each in the order of the
/// programs' hooks.
pub(crate) fn rows(counters: &[(Counter, u64)], all: bool) -> Vec<CounterRow> {
    let (counted, zero): (Vec<_>, Vec<_>) = counters.iter().partition(|(_, value)| *value > 0);
    let zero = zero.into_iter().filter(|_| all);
    let rows = counted.into_iter().chain(zero);
    rows.map(|(counter, value)| CounterRow {
        counter: counter.name(),
        value,
        meaning: counter.meaning().trim(),
    })
    .collect()
}

impl Row for CounterRow {
    const HEADER: &'static [&'static str] = &["COUNTER", "VALUE", "MEANING"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.counter.to_owned(),
            self.value.to_string(),
            self.meaning.to_owned(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_counted_comes_first_and_the_rest_when_it_is_asked_for() {
        let counters = [
            (Counter::ConnectTranslated, 0),
            (Counter::ConnectRefused, 2),
            (Counter::PacketPassed, 0),
            (Counter::PacketNewFlow, 1),
        ];
        let names = |all| {
            let rows = rows(&counters, all);
            rows.iter().map(|row| row.counter).collect::<Vec<_>>()
        };
        assert_eq!(names(false), ["connect_refused", "packet_new_flow"]);
        assert_eq!(
            names(true),
            [
                "connect_refused",
                "packet_new_flow",
                "connect_translated",
                "packet_passed"
            ]
        );
    }
}
