//! Which decisions the programs are asked for.

use proxy_common::abi::{Addr, Counter, Kind, MONITOR_SERVICES};

use crate::inspect::Filter;

/// What does not need saying: everything that goes on, and what is none of our business.
const DEFAULT: [Kind; 4] = [Kind::Translated, Kind::Refused, Kind::Dropped, Kind::Noted];

/// The bits of `MonitorFilter::outcomes` for words that name a kind or an outcome.
///
/// # Errors
/// A word that names neither, as a line that says what there is.
pub(crate) fn outcomes(words: &[String]) -> Result<u64, String> {
    if words.is_empty() {
        return Ok(bits(&DEFAULT));
    }
    let mut bits = 0;
    for word in words {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == word);
        let counter = || Counter::ALL.iter().find(|counter| counter.name() == word);
        bits |= match (word.as_str(), kind) {
            ("all", _) => self::bits(&Kind::ALL),
            (_, Some(kind)) => kind.outcomes(),
            (_, None) => {
                let counter = counter().ok_or_else(|| unknown(word))?;
                1 << counter.index()
            }
        };
    }
    Ok(bits)
}

fn bits(kinds: &[Kind]) -> u64 {
    kinds.iter().fold(0, |bits, kind| bits | kind.outcomes())
}

fn unknown(word: &str) -> String {
    let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    format!(
        "--outcome {word:?}: no outcome has such a name; write all, {}, or a counter as `kube-portal inspect counters --all` names them",
        kinds.join(", ")
    )
}

/// The one address that is asked for, if it is one.
pub(crate) fn addr(filter: &Filter) -> Addr {
    filter.ip().map_or_else(Addr::default, Addr::from)
}

/// The ids of the Service ports that are asked for, of all that there are; too many are all, and left out when
/// they are read. `None`: there is no such Service now.
pub(crate) fn services(
    filter: &Filter,
    names: impl Iterator<Item = (u32, String)>,
) -> Option<[u32; MONITOR_SERVICES]> {
    let mut services = [0; MONITOR_SERVICES];
    if !filter.has_service() {
        return Some(services);
    }
    let mut count = 0;
    for (id, name) in names {
        if !filter.admits_service(&name) {
            continue;
        }
        match services.get_mut(count) {
            Some(place) => *place = id,
            None => return Some([0; MONITOR_SERVICES]),
        }
        count += 1;
    }
    (count > 0).then_some(services)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Result<u64, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        outcomes(&words)
    }

    fn has(bits: u64, counter: Counter) -> bool {
        bits >> counter.index() & 1 != 0
    }

    #[test]
    fn without_a_word_what_is_decided_is_told_and_what_goes_on_is_not() {
        let bits = words(&[]).unwrap();
        assert!(has(bits, Counter::ConnectTranslated) && has(bits, Counter::PacketNoEndpoints));
        assert!(!has(bits, Counter::PacketForwarded) && !has(bits, Counter::PacketPassed));
    }

    #[test]
    fn a_word_names_a_kind_or_an_outcome() {
        let bits = words(&["refused", "packet_passed"]).unwrap();
        assert!(has(bits, Counter::ConnectRefused) && has(bits, Counter::PacketPassed));
        assert!(!has(bits, Counter::ConnectTranslated) && !has(bits, Counter::PacketMalformed));
        assert_eq!(
            words(&["all"]).unwrap().count_ones() as usize,
            Counter::ALL.len()
        );
        let line = words(&["lost"]).unwrap_err();
        assert!(
            line.contains("\"lost\"") && line.contains("translated, continued"),
            "{line}"
        );
    }

    #[test]
    fn the_programs_are_given_the_ids_of_the_service_or_all_if_they_are_too_many() {
        let names = |count: u32| (1..=count).map(|id| (id, format!("default/web:{id}")));
        let filter = |service| Filter::parse(None, service, None).unwrap();
        let web = filter(Some("web"));
        assert_eq!(services(&filter(None), names(2)), Some([0; 8]));
        assert_eq!(services(&web, names(2)), Some([1, 2, 0, 0, 0, 0, 0, 0]));
        assert_eq!(services(&web, names(9)), Some([0; 8]));
        assert_eq!(services(&web, names(0)), None);
        assert_eq!(
            services(&filter(Some("default/web:7")), names(9)),
            Some([7, 0, 0, 0, 0, 0, 0, 0])
        );
    }
}
