//! Which of the chains and rules that iptables-save shows are kube-proxy's, and what iptables-restore is
//! to be told to remove them.

use std::{collections::BTreeSet, fmt::Write as _};

/// Of its modes iptables and ipvs. What the kubelet makes as well is the kubelet's: KUBE-FIREWALL,
/// KUBE-MARK-DROP, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT.
const CHAINS: [&str; 13] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-MARK-MASQ",
    "KUBE-LOAD-BALANCER",
    "KUBE-NODE-PORT",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];
/// Of those that are named after a Service or an endpoint.
const PREFIXES: [&str; 6] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-EXT-",
    "KUBE-SEP-",
    "KUBE-FW-",
    "KUBE-XLB-",
];
const TABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// What goes of one table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Removal {
    pub(super) name: String,
    /// Input of iptables-restore --noflush.
    pub(super) commands: String,
    /// How many go; rules are those in chains that stay.
    pub(super) chains: usize,
    pub(super) rules: usize,
    /// Chains of kube-proxy that somebody else's lead to.
    pub(super) kept: Vec<String>,
}

#[derive(Debug)]
struct Table<'a> {
    name: &'a str,
    builtin: BTreeSet<&'a str>,
    chains: BTreeSet<&'a str>,
    rules: Vec<Rule<'a>>,
}

#[derive(Debug)]
struct Rule<'a> {
    chain: &'a str,
    /// Everything behind `-A `.
    text: &'a str,
    target: Option<&'a str>,
}

/// One for each table in which there is something.
pub(super) fn removals(saved: &str) -> Vec<Removal> {
    parse(saved)
        .iter()
        .filter(|table| TABLES.contains(&table.name))
        .filter_map(removal)
        .collect()
}

fn is_kube_proxys(chain: &str) -> bool {
    CHAINS.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

fn removal(table: &Table<'_>) -> Option<Removal> {
    let mut kept: BTreeSet<&str> = BTreeSet::new();
    // What stays leads to what stays.
    loop {
        let stays = |chain: &str| {
            kept.contains(chain) || !is_kube_proxys(chain) && !table.builtin.contains(chain)
        };
        let more: Vec<&str> = table
            .rules
            .iter()
            .filter(|rule| stays(rule.chain))
            .filter_map(|rule| rule.target)
            .filter(|target| is_kube_proxys(target) && !kept.contains(*target))
            .collect();
        if more.is_empty() {
            break;
        }
        kept.extend(more);
    }
    let goes = |chain: &&str| is_kube_proxys(chain) && !kept.contains(*chain);
    let chains: Vec<&str> = table.chains.iter().copied().filter(goes).collect();
    let rules: Vec<&Rule<'_>> = table
        .rules
        .iter()
        .filter(|rule| table.builtin.contains(rule.chain))
        .filter(|rule| rule.target.is_some_and(|target| goes(&target)))
        .collect();
    if chains.is_empty() && rules.is_empty() {
        return None;
    }
    let mut commands = format!("*{}\n", table.name);
    for chain in &chains {
        // Empties it.
        let _ = writeln!(commands, ":{chain} - [0:0]");
    }
    for rule in &rules {
        let _ = writeln!(commands, "-D {}", rule.text);
    }
    for chain in &chains {
        let _ = writeln!(commands, "-X {chain}");
    }
    commands.push_str("COMMIT\n");
    Some(Removal {
        name: table.name.to_owned(),
        commands,
        chains: chains.len(),
        rules: rules.len(),
        kept: kept.into_iter().map(str::to_owned).collect(),
    })
}

fn parse(saved: &str) -> Vec<Table<'_>> {
    let mut tables: Vec<Table<'_>> = Vec::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(Table {
                name,
                builtin: BTreeSet::new(),
                chains: BTreeSet::new(),
                rules: Vec::new(),
            });
            continue;
        }
        let Some(table) = tables.last_mut() else {
            continue;
        };
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let name = words.next().unwrap_or_default();
            // Only built-in chains have a policy.
            match words.next() {
                Some("-") | None => table.chains.insert(name),
                Some(_) => table.builtin.insert(name),
            };
        } else if let Some(text) = line.strip_prefix("-A ") {
            table.rules.push(Rule {
                chain: text.split(' ').next().unwrap_or_default(),
                text,
                target: target(text),
            });
        }
    }
    tables
}

/// Where a rule leads to: the word behind -j or -g, outside quotes.
fn target(rule: &str) -> Option<&str> {
    let mut quoted = false;
    let mut start = 0;
    let mut words = Vec::new();
    let mut escaped = false;
    for (at, character) in rule.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => {
                words.push(&rule[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    words.push(&rule[start..]);
    words.windows(2).find_map(|pair| match pair {
        ["-j" | "-g", target] => Some(*target),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "\
# Generated by iptables-nft-save
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-HOSTPORT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-A - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -m comment --comment \"mine, not -j KUBE-SERVICES\" -j CNI-HOSTPORT
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-A
-A KUBE-SVC-A -j KUBE-SEP-A
-A KUBE-SEP-A -p tcp -j DNAT --to-destination 10.1.1.2:8080
COMMIT
*filter
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
COMMIT
*raw
:KUBE-SERVICES - [0:0]
COMMIT
";

    #[test]
    fn kube_proxys_chains_go_and_all_others_stay() {
        let removals = removals(SAVED);
        assert_eq!(removals.len(), 1, "{removals:?}");
        let nat = &removals[0];
        assert_eq!((nat.chains, nat.rules), (5, 2));
        assert!(nat.kept.is_empty());
        assert_eq!(
            nat.commands,
            "*nat\n\
             :KUBE-MARK-MASQ - [0:0]\n\
             :KUBE-POSTROUTING - [0:0]\n\
             :KUBE-SEP-A - [0:0]\n\
             :KUBE-SERVICES - [0:0]\n\
             :KUBE-SVC-A - [0:0]\n\
             -D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -D POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
             -X KUBE-MARK-MASQ\n\
             -X KUBE-POSTROUTING\n\
             -X KUBE-SEP-A\n\
             -X KUBE-SERVICES\n\
             -X KUBE-SVC-A\n\
             COMMIT\n"
        );
    }

    #[test]
    fn what_somebody_elses_chain_leads_to_stays_with_all_behind_it() {
        let saved = "*nat\n:OUTPUT ACCEPT [0:0]\n:MINE - [0:0]\n:KUBE-SVC-A - [0:0]\n:KUBE-SEP-A - [0:0]\n\
                     :KUBE-SVC-B - [0:0]\n-A OUTPUT -j KUBE-SVC-B\n-A MINE -g KUBE-SVC-A\n\
                     -A KUBE-SVC-A -j KUBE-SEP-A\nCOMMIT\n";
        let removals = removals(saved);
        assert_eq!(removals[0].kept, ["KUBE-SEP-A", "KUBE-SVC-A"]);
        assert_eq!(
            removals[0].commands,
            "*nat\n:KUBE-SVC-B - [0:0]\n-D OUTPUT -j KUBE-SVC-B\n-X KUBE-SVC-B\nCOMMIT\n"
        );
    }

    #[test]
    fn a_network_policys_chains_are_not_kube_proxys() {
        for chain in [
            "KUBE-ROUTER-INPUT",
            "KUBE-POD-FW-A",
            "KUBE-NWPLCY-A",
            "KUBE-FIREWALL",
            "KUBE-MARK-DROP",
        ] {
            assert!(!is_kube_proxys(chain), "{chain}");
        }
    }

    #[test]
    fn nothing_there_is_nothing_to_do() {
        assert!(removals("").is_empty());
        assert!(removals("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n").is_empty());
    }
}
