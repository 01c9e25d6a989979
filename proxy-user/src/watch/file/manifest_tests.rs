use super::*;

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.0.0.1
  ports:
  - port: 80
";

fn keys(manifest: &Manifest) -> Vec<String> {
    manifest
        .objects
        .iter()
        .map(|(key, _)| key.to_string())
        .collect()
}

fn broken(manifest: &Manifest) -> Vec<&str> {
    manifest
        .broken
        .iter()
        .map(|broken| broken.line.as_str())
        .collect()
}

#[test]
fn documents_are_split_at_separators_only() {
    let split = |text| -> Vec<(usize, String)> {
        documents(text)
            .into_iter()
            .map(|document| (document.lines_before, document.text.to_owned()))
            .collect()
    };
    let doc = |lines: usize, text: &str| (lines, text.to_owned());
    assert_eq!(split(""), []);
    assert_eq!(split("# nothing\n\n"), []);
    assert_eq!(split("a: 1"), [doc(0, "a: 1")]);
    assert_eq!(split("---\na: 1\n"), [doc(0, "---\na: 1\n")]);
    assert_eq!(
        split("# c\n---\na: 1\n--- # two\nb: |\n  ---\n  x\n---b: 1\n"),
        [
            doc(0, "# c\n---\na: 1\n"),
            doc(3, "--- # two\nb: |\n  ---\n  x\n---b: 1\n")
        ]
    );
    assert_eq!(
        split("%YAML 1.2\n---\na: 1\r\n---\r\nb: 2\r\n"),
        [
            doc(0, "%YAML 1.2\n---\na: 1\r\n"),
            doc(3, "---\r\nb: 2\r\n")
        ]
    );
    assert_eq!(
        split("---\n---\na: 1\n"),
        [doc(0, "---\n"), doc(1, "---\na: 1\n")]
    );
}

#[test]
fn the_namespace_is_default_unless_said_otherwise() {
    let manifest = parse("a.yaml", SERVICE, "n1");
    assert_eq!(keys(&manifest), ["Service default/web"]);
    assert_eq!(manifest.lines, [""; 0]);
}

#[test]
fn a_broken_document_names_its_line_and_spares_the_others() {
    let text = format!(
        "{SERVICE}---\nkind: Service\nmetadata: {{name: [\n---\n{}",
        SERVICE.replace("web", "db")
    );
    let manifest = parse("a.yaml", &text, "n1");
    assert_eq!(
        keys(&manifest),
        ["Service default/web", "Service default/db"]
    );
    let lines = broken(&manifest);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].starts_with("a.yaml: document 2: line 1"),
        "{lines:?}"
    );
    assert!(lines[0].ends_with("; correct the syntax"), "{lines:?}");
}

#[test]
fn a_value_of_the_wrong_type_names_object_line_and_field() {
    let text = format!("---\n{SERVICE}---\n{}", SERVICE.replace("80", "eighty"));
    let manifest = parse("a.yaml", &text, "n1");
    assert_eq!(
        broken(&manifest),
        [
            "a.yaml: document 2: Service default/web: line 16: spec.ports[0].port: \
             invalid type: string \"eighty\", expected i32; correct the value"
        ]
    );
    assert_eq!(
        manifest.broken[0].key,
        Some(Key::Service(ObjectName::new("default", "web")))
    );
    let text = SERVICE.replace("{name: web}", "{name: [7]}");
    assert_eq!(
        broken(&parse("a.yaml", &text, "n1")),
        ["a.yaml: document 1: line 3: metadata.name: \
             invalid type: sequence, expected a string; correct the value"]
    );
}

#[test]
fn a_port_out_of_range_is_refused_and_the_rest_of_the_service_stays() {
    let text = SERVICE.replace(
        "- port: 80",
        "- {name: a, port: 80}\n  - {name: b, port: 70000}",
    );
    let manifest = parse("a.yaml", &text, "n1");
    assert_eq!(keys(&manifest), ["Service default/web"]);
    assert_eq!(
        manifest.lines,
        [
            "a.yaml: document 1: Service default/web: spec.ports[1].port: 70000 is not a port number; use 1 to 65535"
        ]
    );
}

#[test]
fn the_same_key_twice_is_an_error() {
    let manifest = parse("a.yaml", &format!("{SERVICE}kind: Pod\n"), "n1");
    assert_eq!(manifest.broken.len(), 1);
}

#[test]
fn lists_are_opened_also_where_items_dont_say_their_kind() {
    let text = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"clusterIP": "10.0.0.1"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "bad"}, "spec": {"ports": [{"port": "x"}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "items": [
            {"metadata": {"name": "web-1", "namespace": "ns"}, "addressType": "IPv4", "endpoints": []}]},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}
    ]}"#;
    for file in ["l.json", "l.yaml"] {
        let manifest = parse(file, text, "n1");
        assert_eq!(
            keys(&manifest),
            ["Service default/web", "EndpointSlice ns/web-1"]
        );
        assert_eq!(
            broken(&manifest),
            [format!(
                "{file}: document 1: items[1]: Service default/bad: spec.ports[0].port: \
                 invalid type: string \"x\", expected i32; correct the value"
            )]
        );
        assert_eq!(manifest.lines, [""; 0]);
    }
}

#[test]
fn json_files_have_documents_and_line_numbers_too() {
    let text = "{\"kind\": \"Namespace\", \"apiVersion\": \"v1\"}\n{\"kind\": \n}";
    let manifest = parse("a.json", text, "n1");
    assert_eq!(
        broken(&manifest),
        ["a.json: document 2: line 3: expected value; correct the syntax"]
    );
}

#[test]
fn other_kinds_are_passed_over_and_unknown_ones_said() {
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n---\nfoo: 1\n---\n\
        apiVersion: serving.knative.dev/v1\nkind: Service\n---\napiVersion: v1\nkind: Node\nmetadata: {name: other}\n---\nhello\n";
    let manifest = parse("a.yaml", text, "n1");
    assert_eq!(keys(&manifest), [""; 0]);
    assert_eq!(manifest.lines.len(), 2, "{:?}", manifest.lines);
    assert!(manifest.lines[0].starts_with("a.yaml: document 2: the object has no kind"));
    assert!(
        manifest.lines[1].contains("kind \"Service\" of apiVersion \"serving.knative.dev/v1\"")
    );
    assert_eq!(broken(&manifest).len(), 1, "{:?}", broken(&manifest));
}

#[test]
fn only_the_own_node_is_read() {
    let text = "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}\n";
    assert_eq!(keys(&parse("a.yaml", text, "n1")), ["Node n1"]);
    assert_eq!(keys(&parse("a.yaml", text, "n2")), [""; 0]);
}

#[test]
fn a_slice_port_without_a_name_is_the_unnamed_one_as_behind_an_api_server() {
    let text = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
        metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}\n\
        ports: [{port: 8080}]\nendpoints: [{addresses: [10.1.0.1]}]\n";
    match &parse("a.yaml", text, "n1").objects[..] {
        [(_, Event::SliceApplied(slice))] => {
            assert_eq!(slice.ports.len(), 1);
            assert_eq!(&*slice.ports[0].name, "");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_text_is_too_strange() {
    for text in [
        "\u{feff}",
        "\0",
        "---",
        "--- ",
        "...",
        "%",
        "&a *a",
        "*a",
        "!!binary x",
        "? ",
        "- - -",
        "{",
        "\t",
        "a: &x [*x]",
        "kind: Service",
        "kind: List\napiVersion: v1\nitems: {}",
        "kind: List\napiVersion: v1\nitems:\n- 1",
        "- kind: Service",
    ] {
        for file in ["a.yaml", "a.json"] {
            let manifest = parse(file, text, "n1");
            for line in manifest
                .lines
                .iter()
                .map(String::as_str)
                .chain(broken(&manifest))
            {
                assert!(!line.contains('\n'), "{text:?}: {line:?}");
            }
        }
    }
}
