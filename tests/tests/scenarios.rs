//! The scenario files in `tests/scenarios`, each a test. How to read and write them:
//! `tests/src/scenario/mod.rs`. Needs no root.

use std::{collections::BTreeSet, fs, path::PathBuf};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

macro_rules! scenarios {
    ($($name:ident)*) => {
        const LISTED: &[&str] = &[$(stringify!($name)),*];

        $(
            #[test]
            fn $name() {
                let file = folder().join(concat!(stringify!($name), ".yaml"));
                if let Err(error) = tests::scenario::play(&file) {
                    panic!("{error:#}");
                }
            }
        )*
    };
}

scenarios! {
    a1_a_service_gains_a_family_and_loses_one
    a1_addresses_of_a_family_the_service_lacks_are_left_alone
    a2_one_number_in_three_protocols_is_three_ports
    a4_a_target_port_may_differ_from_pod_to_pod
    a5_a_slice_port_without_a_name_or_a_number_is_none
    a6_of_a_slice_only_what_is_of_its_service_and_family_counts
    a6_slices_may_come_before_their_service_and_stay_after_it
    a7_a_pod_that_is_listed_twice_is_taken_once
    a8_external_ips_come_change_and_go
    a8_of_two_services_that_claim_one_address_the_older_has_it
    a9_the_address_of_the_load_balancer_comes_later
    a11_a_cluster_ip_has_no_other_ports
    d4_weight_0_gets_no_new_connections_and_keeps_its_own
    d4_what_can_not_be_read_of_balancing_changes_nothing
    e1_conditions_that_are_not_there_mean_ready_and_serving
    e2_who_is_ready_while_it_ends_is_ready
    e3_without_any_ready_endpoint_those_that_still_serve_are_taken
    e4_the_local_list_falls_back_on_its_own
    e5_an_endpoint_anywhere_makes_drop_of_reject
    e6_internal_policy_local_is_about_the_cluster_ip_alone
    e7_external_policy_cluster_leads_everybody_to_all_endpoints
    e8_external_policy_local_keeps_clients_from_outside_on_this_node
    e11_a_pod_is_never_taken_for_outside_and_an_address_makes_no_pod
    e12_external_policy_local_counts_where_there_is_an_outside
    e13_hints_for_this_node_come_first
    e14_hints_for_a_zone_count_if_every_ready_endpoint_has_one
    e15_a_wish_for_closeness_without_hints_changes_nothing
    e17_connections_outlive_endpoints_policies_and_services
    l1_source_ranges_are_about_the_addresses_of_load_balancers
    l4_a_range_with_the_nodes_address_admits_the_node_at_every_balancers_address
    n1_node_ports_answer_in_the_ranges_that_are_configured
    n1_node_ports_answer_on_the_nodes_primary_address
    n5_a_service_changes_its_type_and_its_node_port
    r1_without_endpoints_every_address_rejects
    w1_the_label_service_proxy_name_takes_a_service_away_and_gives_it_back
    w2_slices_of_headless_services_are_passed_over
    w6_a_service_becomes_headless_and_gets_an_address_again
    w6_an_external_name_becomes_a_cluster_ip_and_back
    w7_a_service_is_made_anew_under_its_name
    w7_ports_are_joined_by_their_names
    w10_addresses_are_read_as_they_were_meant
}

#[test]
fn every_file_is_a_test() {
    let files: BTreeSet<String> = fs::read_dir(folder())
        .expect("the folder")
        .map(|entry| {
            let name = entry.expect("an entry").file_name();
            let name = name.to_str().expect("a plain name").to_owned();
            name.strip_suffix(".yaml")
                .map(str::to_owned)
                .unwrap_or(name)
        })
        .collect();
    let listed = LISTED.iter().map(ToString::to_string).collect();
    assert_eq!(files, listed);
}

mod the_runner {
    const RIGHT: &str = r#"
scenario: A Service is served.
rows: [A3]
steps:
- when: there is an endpoint here
  apply:
  - {apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}}
  - apiVersion: discovery.k8s.io/v1
    kind: EndpointSlice
    metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
    addressType: IPv4
    ports: [{name: "", port: 8080}]
    endpoints: [{addresses: [10.1.0.5], nodeName: here}]
  expect: |
    10.96.0.10:80/tcp -> 10.1.0.5:8080
"#;

    fn fails(text: &str) -> String {
        let error = tests::scenario::play_text(text).expect_err(text);
        format!("{error:#}")
    }

    #[test]
    fn plays_what_is_right() {
        tests::scenario::play_text(RIGHT).expect("it is right");
    }

    #[test]
    fn names_every_difference() {
        for (from, to, difference) in [
            (
                "10.1.0.5:8080\n",
                "10.1.0.5:8080, 10.1.0.6:8080\n",
                "10.96.0.10:80/tcp from pod -> 10.1.0.5:8080, 10.1.0.6:8080\n      but it is: 10.1.0.5:8080",
            ),
            (
                "-> 10.1.0.5:8080",
                "-> reject",
                "from outside -> reject\n      but it is: 10.1.0.5:8080",
            ),
            (
                "tcp -> 10.1.0.5:8080",
                "udp -> no such port",
                "10.96.0.10:80/tcp from node -> not ours\n      but it is: 10.1.0.5:8080",
            ),
            (
                "tcp -> 10.1.0.5:8080",
                "udp -> drop",
                "10.96.0.10:80/udp from pod -> drop\n      but it is: no such port",
            ),
            (
                "port: 80}",
                "port: 80, nodePort: 30080}",
                "192.168.0.2:30080/tcp from outside -> not ours\n      but it is: 10.1.0.5:8080",
            ),
        ] {
            assert!(RIGHT.contains(from), "{from}");
            let said = fails(&RIGHT.replace(from, to));
            assert!(said.contains(difference), "{said}\nlacks: {difference}");
            assert!(
                said.contains("step 1, when there is an endpoint here"),
                "{said}"
            );
        }
    }

    #[test]
    fn refuses_a_file_that_says_less_than_it_seems_to() {
        for (from, to, why) in [
            ("rows:", "row:", "unknown field `row`"),
            ("  apply:", "  aply:", "unknown field `aply`"),
            ("nodeName:", "node:", "endpoints[0].node is not known"),
            ("port: 80}", "prot: 80}", ".spec.ports[0].prot is not known"),
            ("kind: Service", "kind: Pod", "kind \"Pod\" is not read"),
            (
                "10.96.0.10:80/tcp -> 10.1.0.5:8080",
                "",
                "`expect` is empty",
            ),
            (
                "  expect: |\n    10.96.0.10:80/tcp -> 10.1.0.5:8080\n",
                "",
                "missing field `expect`",
            ),
            (
                "/tcp ->",
                "/tcp from pod, node ->",
                "nothing is said of outside",
            ),
            ("/tcp ->", "/tcp from pods ->", "is no client"),
            ("-> 10.1.0.5:8080", "-> lost", "is not address:port"),
            ("[A3]", "[third]", "is not a row"),
            (
                "rows:",
                "scheduler: best\nrows:",
                "\"best\" is not a scheduler",
            ),
            ("10.96.0.10, ports", "ten, ports", "problems of the objects"),
        ] {
            assert!(RIGHT.contains(from), "{from}");
            let said = fails(&RIGHT.replace(from, to));
            assert!(said.contains(why), "{said}\nlacks: {why}");
        }
    }
}
