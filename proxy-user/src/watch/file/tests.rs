//! On a real folder with a real inotify.

use std::{future::Future, os::unix::fs::symlink};

use tempfile::TempDir;

use super::*;
use crate::model::Kind;

fn service(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}}}\n---\n"
    )
}

struct World {
    root: TempDir,
    dir: PathBuf,
    rx: mpsc::Receiver<Event>,
}

impl World {
    /// Starts on a folder with these files and takes the first list.
    async fn start(files: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        let dir = root.path().join("manifests");
        fs::create_dir(&dir).expect("a folder");
        for (name, text) in files {
            fs::write(dir.join(name), text).expect("a file");
        }
        let (tx, rx) = mpsc::channel(16);
        tokio::spawn(run(dir.clone(), "n1".into(), tx));
        let mut world = Self { root, dir, rx };
        while world.next().await != Event::Listed(Kind::EndpointSlice) {}
        world
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.join(name), text).expect("written");
    }

    async fn next(&mut self) -> Event {
        within(self.rx.recv()).await.expect("a running source")
    }

    /// The next event, which has to be about this address of this Service.
    async fn expect(&mut self, name: &str, ip: &str) {
        let event = self.next().await;
        let Event::ServiceApplied(service) = event else {
            panic!("{name} {ip} expected: {event:?}");
        };
        assert_eq!(service.name.name.as_ref(), name);
        assert_eq!(
            service.cluster_ips,
            [ip.parse::<std::net::IpAddr>().expect("an address")]
        );
    }

    async fn expect_gone(&mut self, expected: &str) {
        let event = self.next().await;
        let Event::ServiceGone(name) = event else {
            panic!("{expected} to go was expected: {event:?}");
        };
        assert_eq!(name.name.as_ref(), expected);
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("it happens in time")
}

#[tokio::test]
async fn a_folder_that_does_not_exist_is_an_error() {
    let (tx, _rx) = mpsc::channel(1);
    let error = run("/nowhere/at/all".into(), "n1".into(), tx.clone())
        .await
        .expect_err("no folder");
    assert!(
        error
            .to_string()
            .starts_with("manifest folder /nowhere/at/all: No such file"),
        "{error}"
    );
    let error = run("/dev/null".into(), "n1".into(), tx)
        .await
        .expect_err("no folder");
    assert!(
        error
            .to_string()
            .starts_with("manifest folder /dev/null: not a directory"),
        "{error}"
    );
}

#[tokio::test]
async fn files_written_renamed_and_removed_are_noticed() {
    let mut world = World::start(&[("a.yaml", &service("a", "10.0.0.1"))]).await;
    // Truncated and written.
    world.write("a.yaml", &service("a", "10.0.0.2"));
    world.expect("a", "10.0.0.2").await;
    // Written beside and renamed, with an editor's litter around.
    world.write(".a.yaml.swp", "litter");
    world.write("a.yaml~", "litter");
    world.write("4913", "");
    world.write("a.yaml.new", &service("a", "10.0.0.3"));
    fs::rename(world.dir.join("a.yaml.new"), world.dir.join("a.yaml")).expect("renamed");
    world.expect("a", "10.0.0.3").await;
    world.write("b.json", "{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {\"name\": \"b\"}, \"spec\": {\"clusterIP\": \"10.0.0.9\"}}");
    world.expect("b", "10.0.0.9").await;
    fs::remove_file(world.dir.join("b.json")).expect("removed");
    world.expect_gone("b").await;
}

#[tokio::test]
async fn a_file_is_not_read_while_it_is_being_written() {
    use std::io::Write;
    let both = service("a", "10.0.0.1") + &service("b", "10.0.0.2");
    let mut world = World::start(&[("a.yaml", &both)]).await;
    let mut file = fs::File::create(world.dir.join("a.yaml")).expect("truncated");
    file.write_all(service("a", "10.0.0.5").as_bytes())
        .expect("half of it");
    // Longer than the quiet time: only closing the file says that it is complete.
    tokio::time::sleep(4 * Duration::from_millis(50)).await;
    file.write_all(service("b", "10.0.0.6").as_bytes())
        .expect("the rest");
    drop(file);
    world.expect("a", "10.0.0.5").await;
    world.expect("b", "10.0.0.6").await;
}

#[tokio::test]
async fn a_config_map_swapped_by_its_data_link_is_noticed() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let dir = root.path().to_owned();
    for (version, ip) in [("..v1", "10.0.0.1"), ("..v2", "10.0.0.2")] {
        fs::create_dir(dir.join(version)).expect("a folder");
        fs::write(dir.join(version).join("a.yaml"), service("a", ip)).expect("a file");
    }
    symlink("..v1", dir.join("..data")).expect("a link");
    symlink("..data/a.yaml", dir.join("a.yaml")).expect("a link");
    let (tx, rx) = mpsc::channel(16);
    tokio::spawn(run(dir.clone(), "n1".into(), tx));
    let mut world = World { root, dir, rx };
    assert!(matches!(world.next().await, Event::NodeChanged(_)));
    assert_eq!(world.next().await, Event::ListStarted(Kind::ServiceCidr));
    assert_eq!(world.next().await, Event::Listed(Kind::ServiceCidr));
    assert_eq!(world.next().await, Event::ListStarted(Kind::Service));
    world.expect("a", "10.0.0.1").await;
    while world.next().await != Event::Listed(Kind::EndpointSlice) {}
    symlink("..v2", world.dir.join("..data_tmp")).expect("a link");
    fs::rename(world.dir.join("..data_tmp"), world.dir.join("..data")).expect("swapped");
    world.expect("a", "10.0.0.2").await;
}

#[tokio::test]
async fn a_folder_that_disappears_keeps_its_services_until_it_is_back() {
    let mut world = World::start(&[
        ("a.yaml", &service("a", "10.0.0.1")),
        ("b.yaml", &service("b", "10.0.0.2")),
    ])
    .await;
    let aside = world.root.path().join("aside");
    fs::rename(&world.dir, &aside).expect("moved away");
    // What is written to the folder that was moved away is not ours any more.
    fs::write(aside.join("a.yaml"), service("a", "10.9.9.9")).expect("written");
    tokio::time::sleep(2 * IDENTITY_INTERVAL).await;
    fs::create_dir(&world.dir).expect("made again");
    tokio::time::sleep(2 * IDENTITY_INTERVAL).await;
    assert!(
        world.rx.try_recv().is_err(),
        "nothing is told before there are manifests"
    );
    world.write("a.yaml", &service("a", "10.0.0.3"));
    world.expect("a", "10.0.0.3").await;
    world.expect_gone("b").await;
    world.write("a.yaml", &service("a", "10.0.0.4"));
    world.expect("a", "10.0.0.4").await;
}

#[tokio::test]
async fn an_empty_folder_is_ready_with_nothing() {
    let mut world = World::start(&[]).await;
    fs::create_dir(world.dir.join("dir.yaml")).expect("a folder is no manifest");
    symlink("/dev/zero", world.dir.join("endless.yaml")).expect("a device is none either");
    world.write("a.yaml", &service("a", "10.0.0.1"));
    world.expect("a", "10.0.0.1").await;
}

#[tokio::test]
async fn the_source_ends_when_nobody_listens() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let (tx, rx) = mpsc::channel(16);
    let source = tokio::spawn(run(root.path().to_owned(), "n1".into(), tx));
    drop(rx);
    within(source).await.expect("no panic").expect("no error");
}
