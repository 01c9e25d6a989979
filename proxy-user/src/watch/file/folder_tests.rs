use super::*;

fn service(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n---\n"
    )
}

fn slice(name: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nendpoints: []\n---\n"
    )
}

fn cidr(net: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: kubernetes}}\nspec: {{cidrs: [{net}]}}\n---\n"
    )
}

fn texts(files: &[(&str, &str)]) -> Texts {
    files
        .iter()
        .map(|(name, text)| ((*name).to_owned(), Ok((*text).to_owned())))
        .collect()
}

/// Events in short.
fn told(update: &Update) -> Vec<String> {
    update
        .events
        .iter()
        .map(|event| match event {
            Event::ListStarted(kind) => format!("list {kind}"),
            Event::Listed(kind) => format!("listed {kind}"),
            Event::ServiceApplied(service) => {
                format!("+{} {:?}", service.name, service.cluster_ips)
            }
            Event::ServiceGone(name) => format!("-{name}"),
            Event::SliceApplied(slice) => format!("+{}", slice.name),
            Event::SliceGone(name) => format!("-{name}"),
            Event::ServiceCidrApplied(name, nets) => format!("+{name} {nets:?}"),
            Event::ServiceCidrGone(name) => format!("-{name}"),
            Event::NodeChanged(node) => format!("node {} {:?}", node.name, node.zone),
            Event::LocalAddresses(ips) => format!("addresses {ips:?}"),
        })
        .collect()
}

fn folder(files: &[(&str, &str)]) -> Folder {
    let mut folder = Folder::new("n1");
    folder.update(texts(files));
    folder
}

#[test]
fn the_first_reading_is_a_list_of_each_kind() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}\n";
    let update = Folder::new("n1").update(texts(&[
        ("a.yaml", &(slice("web") + &service("web", "10.0.0.1"))),
        (
            "n.yml",
            &(node.to_owned() + "---\n" + &cidr("10.96.0.0/12")),
        ),
    ]));
    assert_eq!(
        told(&update),
        [
            "node n1 Some(\"a\")",
            "list ServiceCIDR",
            "+kubernetes [10.96.0.0/12]",
            "listed ServiceCIDR",
            "list Service",
            "+default/web [10.0.0.1]",
            "listed Service",
            "list EndpointSlice",
            "+default/web-1",
            "listed EndpointSlice",
        ]
    );
    assert_eq!(update.lines, [""; 0]);
}

#[test]
fn an_empty_folder_is_listed_too_and_said_once() {
    let mut folder = Folder::new("n1");
    let update = folder.update(texts(&[]));
    // That there is no Node, and three lists.
    assert_eq!(update.events.len(), 7);
    assert_eq!(update.lines.len(), 1);
    assert_eq!(folder.update(texts(&[])), Update::default());
}

#[test]
fn only_what_changed_is_told_and_what_comes_before_what_goes() {
    let two = service("a", "10.0.0.1") + &service("b", "10.0.0.2");
    let mut folder = folder(&[("a.yaml", &two), ("b.yaml", &slice("b"))]);
    let same = folder.update(texts(&[("a.yaml", &two), ("b.yaml", &slice("b"))]));
    assert_eq!(same, Update::default());
    let reformatted = format!("# hello\n{two}");
    let update = folder.update(texts(&[("a.yaml", &reformatted), ("b.yaml", &slice("b"))]));
    assert_eq!(update, Update::default());
    let changed = service("b", "10.0.0.3") + &service("c", "10.0.0.4");
    let update = folder.update(texts(&[("a.yaml", &changed)]));
    assert_eq!(
        told(&update),
        [
            "+default/b [10.0.0.3]",
            "+default/c [10.0.0.4]",
            "-default/a",
            "-default/b-1"
        ]
    );
}

#[test]
fn moving_an_object_to_another_file_is_no_change() {
    let mut folder = folder(&[("a.yaml", &service("a", "10.0.0.1"))]);
    let update = folder.update(texts(&[("z.yaml", &service("a", "10.0.0.1"))]));
    assert_eq!(update, Update::default());
}

#[test]
fn a_file_that_breaks_keeps_what_it_held_and_says_so_once() {
    let good = service("a", "10.0.0.1") + &service("b", "10.0.0.2");
    let mut folder = folder(&[("a.yaml", &good)]);
    let bad = service("a", "10.0.0.9") + "kind: Service\nmetadata: {name: [\n";
    let update = folder.update(texts(&[("a.yaml", &bad)]));
    assert_eq!(told(&update), ["+default/a [10.0.0.9]"]);
    assert_eq!(update.lines.len(), 1);
    assert!(
        update.lines[0].ends_with("correct the syntax (until then what was there before is kept)"),
        "{:?}",
        update.lines
    );
    assert_eq!(folder.update(texts(&[("a.yaml", &bad)])), Update::default());
    // Breaking in another way keeps it as well.
    let worse = service("a", "10.0.0.9") + "kind: {{\n";
    assert_eq!(told(&folder.update(texts(&[("a.yaml", &worse)]))), [""; 0]);
    let update = folder.update(texts(&[("a.yaml", &service("a", "10.0.0.9"))]));
    assert_eq!(told(&update), ["-default/b"]);
    assert_eq!(update.lines, [""; 0]);
}

#[test]
fn an_object_that_breaks_keeps_only_itself() {
    let good = service("a", "10.0.0.1") + &service("b", "10.0.0.2");
    let mut folder = folder(&[("a.yaml", &good)]);
    let bad = service("a", "10.0.0.1").replace("port: 80", "port: eighty");
    let update = folder.update(texts(&[("a.yaml", &bad)]));
    assert_eq!(told(&update), ["-default/b"]);
    assert_eq!(update.lines.len(), 1);
    assert_eq!(told(&folder.update(texts(&[]))), ["-default/a"]);
}

#[test]
fn a_file_that_is_broken_from_the_start_holds_nothing() {
    let mut folder = Folder::new("n1");
    let update = folder.update(texts(&[
        ("a.yaml", "{"),
        ("b.yaml", &service("b", "10.0.0.2")),
    ]));
    assert!(told(&update).contains(&"+default/b [10.0.0.2]".to_owned()));
    assert!(!update.lines[0].contains("kept"), "{:?}", update.lines);
}

#[test]
fn an_unreadable_file_keeps_what_it_held() {
    let mut folder = folder(&[("a.yaml", &service("a", "10.0.0.1"))]);
    let mut unreadable = Texts::new();
    unreadable.insert("a.yaml".into(), Err("permission denied".into()));
    let update = folder.update(unreadable);
    assert_eq!(
        update.lines,
        [
            "a.yaml: it can't be read: permission denied; make it readable (until then what was there before is kept)"
        ]
    );
    assert_eq!(told(&update), [""; 0]);
    let back = folder.update(texts(&[("a.yaml", &service("a", "10.0.0.1"))]));
    assert_eq!(back, Update::default());
}

#[test]
fn of_two_definitions_the_first_file_by_name_counts() {
    let mut folder = folder(&[("b.yaml", &service("a", "10.0.0.2"))]);
    let both = texts(&[
        ("a.yaml", &service("a", "10.0.0.1")),
        ("b.yaml", &service("a", "10.0.0.2")),
    ]);
    let update = folder.update(both.clone());
    assert_eq!(told(&update), ["+default/a [10.0.0.1]"]);
    assert_eq!(
        update.lines,
        ["b.yaml: Service default/a is defined in a.yaml too, that one counts; remove one"]
    );
    assert_eq!(folder.update(both), Update::default());
    let update = folder.update(texts(&[("b.yaml", &service("a", "10.0.0.2"))]));
    assert_eq!(told(&update), ["+default/a [10.0.0.2]"]);
}

#[test]
fn a_service_that_becomes_headless_is_gone() {
    let mut folder = folder(&[("a.yaml", &service("a", "10.0.0.1"))]);
    let update = folder.update(texts(&[("a.yaml", &service("a", "None"))]));
    assert_eq!(told(&update), ["-default/a"]);
    assert_eq!(update.lines, [""; 0]);
}

#[test]
fn without_its_manifest_the_node_has_no_zone() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}\n";
    let mut folder = folder(&[("n.yaml", node)]);
    assert_eq!(told(&folder.update(texts(&[]))), ["node n1 None"]);
}

#[test]
fn a_service_cidr_changes_and_goes_as_any_object() {
    let mut folder = folder(&[("a.yaml", &cidr("10.96.0.0/12"))]);
    let update = folder.update(texts(&[("a.yaml", &cidr("10.96.0.0/16"))]));
    assert_eq!(told(&update), ["+kubernetes [10.96.0.0/16]"]);
    let update = folder.update(texts(&[("a.yaml", &service("web", "10.0.0.1"))]));
    assert_eq!(told(&update), ["+default/web [10.0.0.1]", "-kubernetes"]);
}
