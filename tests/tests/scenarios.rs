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
    e1_conditions_that_are_not_there_mean_ready_and_serving
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
            ("10.96.0.10, ports", "ten, ports", "problems of the objects"),
        ] {
            assert!(RIGHT.contains(from), "{from}");
            let said = fails(&RIGHT.replace(from, to));
            assert!(said.contains(why), "{said}\nlacks: {why}");
        }
    }
}
