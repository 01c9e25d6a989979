//! Random histories: what they end in does not depend on how they went, and is what a plain reading of the
//! rules says of what exists.

use proptest::prelude::*;

use super::{
    oracle::{Account, LOCAL, Outcome, SERVICES, any_service, any_slice, pick},
    tests::{ip, name},
    *,
};

/// One source's word: single objects, or a whole list.
fn any_events() -> impl Strategy<Value = Vec<Event>> {
    let slices = pick(&["s1", "s2", "s3", "s4"]);
    let bracket = |kind, events: Vec<Event>| {
        let mut all = vec![Event::ListStarted(kind)];
        all.extend(events);
        all.push(Event::Listed(kind));
        all
    };
    prop_oneof![
        4 => any_service().prop_map(|service| vec![Event::ServiceApplied(service)]),
        4 => any_slice().prop_map(|slice| vec![Event::SliceApplied(slice)]),
        1 => pick(&SERVICES).prop_map(|text| vec![Event::ServiceGone(name(text))]),
        1 => slices.prop_map(|text| vec![Event::SliceGone(name(text))]),
        1 => prop::collection::vec(any_service().prop_map(Event::ServiceApplied), 0..4)
            .prop_map(move |events| bracket(Kind::Service, events)),
        1 => prop::collection::vec(any_slice().prop_map(Event::SliceApplied), 0..4)
            .prop_map(move |events| bracket(Kind::EndpointSlice, events)),
        1 => (pick(&["n1", "n2"]), prop::option::of(pick(&["east", "west"]))).prop_map(|(node, zone)| vec![Event::NodeChanged(Node {
            name: node.into(),
            zone: zone.map(Into::into),
            internal_ips: if node == "n1" { vec![ip(LOCAL[0])] } else { Vec::new() },
            pod_cidrs: vec!["10.0.0.0/24".parse().expect("a range")],
            ..Node::default()
        })]),
        1 => (pick(&["x", "y"]), pick(&["10.96.0.0/12", "fd96::/108"]))
            .prop_map(|(cidr, net)| vec![Event::ServiceCidrApplied(cidr.into(), vec![net.parse().expect("a range")])]),
        1 => pick(&["x", "y"]).prop_map(|cidr| vec![Event::ServiceCidrGone(cidr.into())]),
        1 => pick(&["x", "y"]).prop_map(move |cidr| bracket(
            Kind::ServiceCidr,
            vec![Event::ServiceCidrApplied(cidr.into(), vec!["10.97.0.0/16".parse().expect("a range")])],
        )),
        1 => prop::sample::subsequence(LOCAL.to_vec(), 0..=LOCAL.len())
            .prop_map(|ips| vec![Event::LocalAddresses(
                ips.iter().map(|ip| ip.parse().expect("an IP")).collect(),
            )]),
    ]
}

/// As the maps will say it.
fn meaning(
    written: &BTreeMap<ObjectName, Vec<PortSnapshot>>,
    address: &FrontendAddress,
    outside: bool,
) -> Outcome {
    let all = || written.values().flatten();
    let (port, kind) = all().find_map(|port| {
        let frontend = port.frontends.iter().find(|(known, _)| known == address);
        frontend.map(|(_, kind)| (port, *kind))
    })?;
    let twin = PortKey {
        scope: Scope::Local,
        ..port.key.clone()
    };
    let list = if outside && port.outside_is_local && kind != FrontendKind::ClusterIp {
        all()
            .find(|port| port.key == twin)
            .expect("both or neither")
    } else {
        port
    };
    Some(match list.chosen.as_slice() {
        [] => Err(list.empty),
        chosen => Ok(chosen.iter().copied().collect()),
    })
}

proptest! {
    #[test]
    fn only_what_exists_in_the_end_counts(
        history in prop::collection::vec(any_events(), 0..30),
        reversed in any::<bool>(),
    ) {
        let mut model = Model::new(Node::default(), NodePortScope::Primary);
        let mut account = Account::default();
        // What a syncer would have written: it asks only for what was touched.
        let mut written: BTreeMap<ObjectName, Vec<PortSnapshot>> = BTreeMap::new();
        let mut written_nets = None;
        let mut cidrs_listed = false;
        for events in history {
            for event in events {
                cidrs_listed |= event == Event::Listed(Kind::ServiceCidr);
                account.note(&event);
                model.apply(event);
            }
            for name in model.take_touched() {
                let desired = model.desired(&name);
                written.insert(name, desired);
            }
            written_nets = model.take_service_nets().or(written_nets);
        }
        let local = Event::LocalAddresses(account.local.clone());
        let services = account.services.values().cloned().map(Event::ServiceApplied);
        let slices = account.slices.values().cloned().map(Event::SliceApplied);
        let mut events: Vec<Event> = services.chain(slices).chain([local]).collect();
        if reversed {
            events.reverse();
        }
        let mut fresh = Model::new(account.node.clone(), NodePortScope::Primary);
        events.into_iter().for_each(|event| fresh.apply(event));
        let mut owners = HashMap::default();
        for text in SERVICES {
            let expected = fresh.desired(&name(text));
            prop_assert_eq!(&model.desired(&name(text)), &expected);
            prop_assert_eq!(written.get(&name(text)).cloned().unwrap_or_default(), expected.clone());
            for (address, _) in expected.iter().flat_map(|port| &port.frontends) {
                prop_assert_eq!(owners.insert(*address, text), None, "two owners");
            }
        }
        for (address, outside) in Account::questions() {
            let expected = account.outcome(&address, outside);
            let found = meaning(&written, &address, outside);
            prop_assert_eq!(found, expected, "{}, from outside: {}", address, outside);
        }
        let nets: BTreeSet<IpNet> = account.cidrs.values().flatten().copied().collect();
        prop_assert_eq!(written_nets, cidrs_listed.then_some(nets));
        prop_assert_eq!(model.service_count(), fresh.service_count());
        prop_assert_eq!(model.entries.len(), fresh.entries.len(), "something is kept for nothing");
    }
}
