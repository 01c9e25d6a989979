//! The manifests of `deploy/` are what Kubernetes takes: every field is known and where it belongs, no file is
//! forgotten, and what one names is there in another.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Namespace, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use libtest_mimic::{Arguments, Failed, Trial};
use serde::{Deserialize as _, Serialize, de::DeserializeOwned};
use serde_json::Value;

const NAME: &str = "kube-portal";

fn main() -> ExitCode {
    let no_kubectl = Command::new("kubectl")
        .arg("version")
        .arg("--client")
        .output()
        .is_err();
    if no_kubectl {
        eprintln!("kubectl is not here: what it makes of deploy/ is not looked at");
    }
    let test = |name: &str, run: fn() -> Result<()>| {
        Trial::test(name, move || {
            run().map_err(|error| Failed::from(format!("{error:?}")))
        })
    };
    let trials = vec![
        test("every_field_of_every_object_is_known", known),
        test(
            "the_base_lists_every_file_and_the_example_leads_to_it",
            listed,
        ),
        test("names_and_labels_fit_together", fitting),
        test("the_image_is_that_of_this_version", versioned),
        test(
            "kubectl_kustomize_takes_the_base_and_the_example",
            kustomized,
        )
        .with_ignored_flag(no_kubectl),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(name)
}

fn documents(text: &str) -> Result<Vec<Value>> {
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| Ok(Value::deserialize(document)?))
        .collect()
}

fn read(file: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    documents(&text).with_context(|| file.display().to_string())
}

fn files(folder: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        names.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    names.remove("kustomization.yaml");
    Ok(names)
}

fn base() -> Result<Vec<Value>> {
    let folder = folder("base");
    let mut objects = Vec::new();
    for name in files(&folder)? {
        objects.extend(read(&folder.join(name))?);
    }
    Ok(objects)
}

/// What the type keeps of an object is all of it. The schema of Kubernetes drops a field that is misspelt or
/// stands elsewhere.
fn is<T: DeserializeOwned + Serialize>(object: &Value) -> Result<()> {
    let kept: T = serde_json::from_value(object.clone()).with_context(|| object.to_string())?;
    let kept = serde_json::to_value(kept)?;
    ensure!(kept == *object, "kept: {kept:#}\ngiven: {object:#}");
    Ok(())
}

fn object_is_known(object: &Value) -> Result<()> {
    match object["kind"].as_str() {
        Some("Namespace") => is::<Namespace>(object),
        Some("ServiceAccount") => is::<ServiceAccount>(object),
        Some("ClusterRole") => is::<ClusterRole>(object),
        Some("ClusterRoleBinding") => is::<ClusterRoleBinding>(object),
        Some("ConfigMap") => is::<ConfigMap>(object),
        Some("DaemonSet") => is::<DaemonSet>(object),
        other => anyhow::bail!("{other:?}: what is it for?"),
    }
}

fn known() -> Result<()> {
    let objects = base()?;
    ensure!(objects.len() == 6, "{}", objects.len());
    objects.iter().try_for_each(object_is_known)?;
    // That this would tell.
    let mut wrong = object_of(&objects, "DaemonSet")?.clone();
    wrong["spec"]["template"]["spec"]["hostNetwrok"] = true.into();
    ensure!(object_is_known(&wrong).is_err());
    Ok(())
}

fn object_of<'a>(objects: &'a [Value], kind: &str) -> Result<&'a Value> {
    let found = objects.iter().find(|object| object["kind"] == kind);
    found.with_context(|| format!("no {kind}"))
}

fn strings(value: &Value) -> BTreeSet<String> {
    let all = value.as_array().into_iter().flatten();
    all.filter_map(|one| Some(one.as_str()?.to_owned()))
        .collect()
}

fn listed() -> Result<()> {
    let base = read(&folder("base/kustomization.yaml"))?.remove(0);
    ensure!(
        strings(&base["resources"]) == files(&folder("base"))?,
        "{base}"
    );
    let example = read(&folder("example/kustomization.yaml"))?.remove(0);
    ensure!(
        example["resources"] == serde_json::json!(["../base"]),
        "{example}"
    );
    ensure!(files(&folder("example"))?.is_empty());
    Ok(())
}

fn fitting() -> Result<()> {
    let objects = base()?;
    for object in &objects {
        let kind = object["kind"].as_str().unwrap_or_default();
        ensure!(object["metadata"]["name"] == NAME, "{object}");
        let in_namespace = matches!(kind, "ServiceAccount" | "ConfigMap" | "DaemonSet");
        ensure!(
            in_namespace == (object["metadata"]["namespace"] == NAME),
            "{object}"
        );
    }
    let daemon_set = object_of(&objects, "DaemonSet")?;
    let spec = &daemon_set["spec"];
    ensure!(spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]);
    let pod = &spec["template"]["spec"];
    ensure!(pod["serviceAccountName"] == NAME);
    let config = object_of(&objects, "ConfigMap")?;
    let container = &pod["containers"][0];
    let mounted = strings(&container["args"]).into_iter().find_map(|arg| {
        let file = arg.strip_prefix("--config=")?.to_owned();
        Some(file)
    });
    let mounted = mounted.context("no --config")?;
    let (at, file) = mounted.rsplit_once('/').context("a path")?;
    ensure!(config["data"][file].is_string(), "{file}");
    let mounts = container["volumeMounts"].as_array().context("mounts")?;
    let volumes = pod["volumes"].as_array().context("volumes")?;
    ensure!(mounts.len() == volumes.len());
    for mount in mounts {
        let volume = volumes
            .iter()
            .find(|volume| volume["name"] == mount["name"]);
        let volume = volume.with_context(|| mount.to_string())?;
        ensure!(
            (mount["mountPath"] == at) == volume["configMap"].is_object(),
            "{mount}"
        );
        // Only there is anything written.
        let written = mount["mountPath"] == "/sys/fs/bpf";
        ensure!(written == (mount["readOnly"] != true), "{mount}");
    }
    let binding = object_of(&objects, "ClusterRoleBinding")?;
    ensure!(binding["roleRef"]["name"] == NAME && binding["roleRef"]["kind"] == "ClusterRole");
    let subject = serde_json::json!([{"kind": "ServiceAccount", "name": NAME, "namespace": NAME}]);
    ensure!(binding["subjects"] == subject, "{binding}");
    Ok(())
}

fn versioned() -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let objects = base()?;
    let pod = &object_of(&objects, "DaemonSet")?["spec"]["template"]["spec"];
    ensure!(
        pod["containers"][0]["image"] == format!("{NAME}:{version}"),
        "{pod}"
    );
    let base = read(&folder("base/kustomization.yaml"))?.remove(0);
    ensure!(
        base["labels"][0]["pairs"]["app.kubernetes.io/version"] == version,
        "{base}"
    );
    let example = read(&folder("example/kustomization.yaml"))?.remove(0);
    ensure!(example["images"][0]["newTag"] == version, "{example}");
    let dockerfile = fs::read_to_string(folder("../Dockerfile"))?;
    for label in [
        format!("org.opencontainers.image.version={version} "),
        format!(
            "org.opencontainers.image.licenses={} ",
            env!("CARGO_PKG_LICENSE")
        ),
        format!("kube-portal.abi={}\n", proxy_common::abi::ABI_VERSION),
        format!("kube-portal:{version} "),
    ] {
        ensure!(dockerfile.contains(&label), "{label}");
    }
    Ok(())
}

fn kustomized() -> Result<()> {
    for name in ["base", "example"] {
        let output = Command::new("kubectl")
            .arg("kustomize")
            .arg(folder(name))
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        ensure!(
            output.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let objects = documents(&String::from_utf8(output.stdout)?)?;
        ensure!(objects.len() == base()?.len(), "{}", objects.len());
        objects.iter().try_for_each(object_is_known)?;
        for object in &objects {
            let labels = &object["metadata"]["labels"];
            ensure!(labels["app.kubernetes.io/name"] == NAME, "{object}");
        }
        let pod = &object_of(&objects, "DaemonSet")?["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let is_example = name == "example";
        let args = strings(&container["args"]);
        ensure!(
            args.iter().any(|arg| arg.starts_with("--apiserver=")) == is_example,
            "{args:?}"
        );
        ensure!((pod["nodeSelector"][NAME] == "here") == is_example, "{pod}");
        let image = container["image"].as_str().context("an image")?;
        ensure!(
            image.starts_with("registry.example/") == is_example,
            "{image}"
        );
    }
    Ok(())
}
