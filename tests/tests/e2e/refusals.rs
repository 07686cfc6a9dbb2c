//! Bad input: one clear error that names the thing, and nothing left behind.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::command;
use crisp_tests::cri::{container_config, refused};
use crisp_tests::host::Snapshot;
use crisp_tests::node::Node;
use crisp_tests::registry::{OneImage, Registry, digest};
use tonic::Code;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "an_image_that_does_not_exist_is_named", needs: &[], images: &[], run: no_such_image },
    Case {
        name: "content_that_does_not_match_its_digest_is_refused",
        needs: &[],
        images: &[],
        run: wrong_digests,
    },
    Case {
        name: "a_command_that_is_not_in_the_image_is_named",
        needs: &[],
        images: &["busybox"],
        run: no_such_command,
    },
    Case { name: "a_typo_in_a_manifest_is_named", needs: &[], images: &[], run: typo },
    Case { name: "an_unsupported_field_is_named", needs: &[], images: &["busybox"], run: unsupported },
    Case { name: "a_bad_configuration_is_named", needs: &[], images: &[], run: configuration },
    Case { name: "a_sandbox_that_cannot_be_is_refused", needs: &[], images: &[], run: sandboxes },
    Case { name: "an_archive_that_is_none_is_refused", needs: &[], images: &[], run: archives },
];

/// Checks that a `crisp` command is refused with a message that names `thing`, in one error and without a backtrace.
fn names(node: &Node, arguments: &[&str], thing: &str) -> Result<()> {
    let said = node.crisp(arguments)?.refused()?;
    ensure!(said.contains(thing), "{arguments:?}: the message does not name {thing}: {said}");
    ensure!(!said.contains("panicked") && !said.contains("stack backtrace"), "{said}");
    Ok(())
}

/// Checks that a refusal has left nothing, before anybody has taken anything away: no pod, no container beside
/// `containers`, and the host as it was.
pub(crate) fn nothing_left(node: &Node, before: &Snapshot, containers: &[&str]) -> Result<()> {
    let left: Vec<_> = node.cri().containers()?.into_iter().map(|container| container.id).collect();
    ensure!(
        left.len() == containers.len() && left.iter().all(|id| containers.contains(&id.as_str())),
        "{left:?}"
    );
    node.wait_for_return(before).context("after a refusal")
}

/// The same where there was no pod before.
fn nothing_at_all(node: &Node, before: &Snapshot) -> Result<()> {
    let pods = node.cri().pods()?;
    ensure!(pods.is_empty(), "pods left behind: {pods:?}");
    nothing_left(node, before, &[])
}

fn write_manifest(node: &Node, text: &str) -> Result<String> {
    let path: PathBuf = node.folder().join("pod.yaml");
    fs::write(&path, text)?;
    Ok(path.display().to_string())
}

fn pod_manifest(container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: bad}}\nspec:\n  restartPolicy: Never\n  containers:\n  - name: app\n{container}"
    )
}

fn no_such_image(node: &mut Node) -> Result<()> {
    let before = node.snapshot()?;
    let registry = Registry::serve("some/repository", "latest", &OneImage::good(), &[])?;
    registry.announce(&node.registry_hosts())?;
    let name = format!("{}/no/such/repository:1", registry.host());
    let message = node.cri().pull(&name).err().context("pulled an image that does not exist")?;
    ensure!(message.message().contains("no/such/repository"), "{message:?}");
    names(node, &["pull", &name], "no/such/repository")?;

    let pod = node.run_pod("no-image")?;
    let with_pod = node.snapshot()?;
    let config = container_config("c", "not/here:7", &["true"]);
    let message = refused(node.cri().create(&pod.id, &config, &pod.config), Code::NotFound)?;
    ensure!(message.contains("not/here:7"), "{message}");
    nothing_left(node, &with_pod, &[])?;
    node.end_pod(&pod)?;

    let manifest =
        write_manifest(node, &pod_manifest("    image: not/here:7\n    imagePullPolicy: Never\n"))?;
    names(node, &["play", &manifest], "not/here:7")?;
    nothing_at_all(node, &before)?;

    // A registry that nobody answers for.
    let message = node.cri().pull("127.0.0.1:1/x:1").err().context("pulled from nowhere")?;
    ensure!(message.message().contains("127.0.0.1:1"), "{message:?}");
    for bad in ["UPPER/case", "a//b", "x:bad tag", "x@sha256:123"] {
        let message = node.cri().pull(bad).err().with_context(|| format!("{bad} was accepted"))?;
        ensure!(message.message().contains(bad), "{bad}: {message:?}");
    }
    nothing_at_all(node, &before)
}

fn wrong_digests(node: &mut Node) -> Result<()> {
    let before = node.snapshot()?;
    let good = OneImage::good();
    let other = digest(b"something else");
    let cases = [
        ("layer", OneImage { layer_digest: other.clone(), ..good.clone() }, other.clone()),
        ("diff-id", OneImage { diff_id: other.clone(), ..good.clone() }, other.clone()),
    ];
    for (name, image, named) in cases {
        let registry = Registry::serve("spoiled", "1", &image, &[])?;
        registry.announce(&node.registry_hosts())?;
        let reference = format!("{}/spoiled:1", registry.host());
        let message = node
            .cri()
            .pull(&reference)
            .err()
            .with_context(|| format!("{name}: spoiled content was accepted"))?;
        ensure!(message.message().contains(&named), "{name}: the message does not name {named}: {message:?}");
        ensure!(node.cri().image_id(&reference)?.is_none(), "{name}: half an image is visible");
        names(node, &["pull", &reference], &named)?;
    }
    // The manifest itself is not what was asked for.
    let registry = Registry::serve("spoiled", "1", &good, &[&other])?;
    registry.announce(&node.registry_hosts())?;
    let reference = format!("{}/spoiled@{other}", registry.host());
    let message = node.cri().pull(&reference).err().context("another manifest was accepted")?;
    ensure!(message.message().contains(&other), "{message:?}");
    nothing_at_all(node, &before)?;
    // And the honest image is taken, so the refusals above are not about something else.
    let honest = format!("{}/spoiled@{}", registry.host(), digest(&good.manifest()));
    let id = node.cri().pull(&honest)?;
    node.cri().remove_image(cri::RemoveImageRequest { image: Some(crisp_tests::cri::image(&id)) })?;
    ensure!(node.cri().image_id(&honest)?.is_none());
    Ok(())
}

fn no_such_command(node: &mut Node) -> Result<()> {
    let before = node.snapshot()?;
    let pod = node.run_pod("no-command")?;
    for (name, command, named) in [
        ("path", "/no/such/program", "/no/such/program"),
        ("word", "nosuchprogram", "nosuchprogram"),
        ("folder", "/etc", "/etc"),
    ] {
        let reply = node.cri().launch(&pod.id, &container_config(name, "busybox", &[command]), &pod.config);
        let message = reply.err().with_context(|| format!("{command} was started"))?;
        ensure!(message.message().contains(named), "{message:?}");
    }
    node.end_pod(&pod)?;
    let container = "    image: busybox\n    imagePullPolicy: Never\n    command: [nosuchprogram]\n";
    let two = format!("{container}  - name: second\n{container}");
    let before_containers = "  containers:\n";
    let init = pod_manifest("    image: busybox\n    imagePullPolicy: Never\n").replace(
        before_containers,
        &format!("  initContainers:\n  - name: first\n{container}{before_containers}"),
    );
    for text in [pod_manifest(container), pod_manifest(&two), init] {
        let manifest = write_manifest(node, &text)?;
        names(node, &["play", &manifest], "nosuchprogram")?;
        nothing_at_all(node, &before)?;
    }
    // One of two that runs is worth a look: the pod stays until it is taken away.
    let runs = "    image: busybox\n    imagePullPolicy: Never\n    command: [\"true\"]\n";
    let manifest = write_manifest(node, &pod_manifest(&format!("{container}  - name: second\n{runs}")))?;
    names(node, &["play", &manifest], "nosuchprogram")?;
    ensure!(node.cri().containers()?.len() == 2, "{:?}", node.cri().containers()?);
    node.crisp(&["play", "--down", &manifest])?.ok()?;
    nothing_at_all(node, &before)
}

fn typo(node: &mut Node) -> Result<()> {
    let before = node.snapshot()?;
    let cases = [
        ("    image: busybox\n    comand: [\"true\"]\n", "comand"),
        ("    image: busybox\n    resources: {limits: {memroy: 1Mi}}\n", "memroy"),
        ("    image: busybox\n    resources: {limits: {memory: lots}}\n", "lots"),
        ("    image: busybox\n    imagePullPolicy: Sometimes\n", "Sometimes"),
        ("    image: busybox\n    volumeMounts: [{name: nowhere, mountPath: /x}]\n", "nowhere"),
        ("    command: [\"true\"]\n", "image"),
    ];
    for (container, named) in cases {
        let manifest = write_manifest(node, &pod_manifest(container))?;
        names(node, &["play", &manifest], named)?;
    }
    let manifest = write_manifest(node, "apiVersion: v1\nkind: Pod\nmetadata: {name: x\n")?;
    names(node, &["play", &manifest], "pod.yaml")?;
    let manifest = write_manifest(node, "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n")?;
    names(node, &["play", &manifest], "Deployment")?;
    names(node, &["play", "/no/such/file.yaml"], "/no/such/file.yaml")?;
    nothing_at_all(node, &before)
}

fn unsupported(node: &mut Node) -> Result<()> {
    for (container, named) in [
        ("    image: busybox\n    livenessProbe: {exec: {command: [\"true\"]}}\n", "livenessProbe"),
        ("    image: busybox\n    lifecycle: {preStop: {exec: {command: [\"true\"]}}}\n", "lifecycle"),
    ] {
        let manifest = write_manifest(node, &pod_manifest(container))?;
        names(node, &["play", &manifest], named)?;
    }
    // What the daemon cannot do yet is refused by the daemon too.
    let mut config = node.pod_config("userns");
    let options = cri::NamespaceOption {
        userns_options: Some(cri::UserNamespace {
            mode: cri::NamespaceMode::Pod.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let security =
        config.linux.as_mut().context("linux")?.security_context.as_mut().context("security context")?;
    security.namespace_options = Some(options);
    let message = node.cri().run_pod(&config).err().context("a user namespace was accepted")?;
    ensure!(message.message().contains("userns"), "{message:?}");
    Ok(())
}

fn configuration(node: &mut Node) -> Result<()> {
    let before = node.snapshot()?;
    let scratch = node.folder().join("bad");
    fs::create_dir(&scratch)?;
    let refusal = |config: &std::path::Path| -> Result<String> {
        let mut serve = node.serve_command();
        let arguments: Vec<_> = serve.get_args().map(ToOwned::to_owned).collect();
        serve = std::process::Command::new(serve.get_program());
        for pair in arguments[1..].chunks(2) {
            let value = match pair[0].to_str() {
                Some("--config") => config.into(),
                Some("--state" | "--root") => {
                    scratch.join(pair[0].to_string_lossy().trim_start_matches('-')).into()
                }
                Some("--listen") => format!("unix://{}", scratch.join("sock").display()).into(),
                _ => pair[1].clone(),
            };
            serve.arg(&pair[0]).arg(value);
        }
        let program = serve.get_program().to_owned();
        let mut whole = std::process::Command::new(program);
        whole.arg("serve").args(serve.get_args()).stdout(Stdio::null());
        command::run(&mut whole)?.refused()
    };
    let file = |text: &str| -> Result<PathBuf> {
        let path = scratch.join("config.toml");
        fs::write(&path, text)?;
        Ok(path)
    };
    for (text, named) in [
        ("[network]\nbrigde = \"x\"\n", &["brigde", "bridge"][..]),
        ("[netwrok]\n", &["netwrok", "network"]),
        ("[network]\nipv4 = \"10.0.0.0/99\"\n", &["10.0.0.0/99"]),
        ("not toml at all", &["config.toml"]),
    ] {
        let said = refusal(&file(text)?)?;
        ensure!(
            named.iter().all(|name| said.contains(name)),
            "{text:?}: the message does not name {named:?}: {said}"
        );
    }
    let missing = scratch.join("no-such.toml");
    ensure!(refusal(&missing)?.contains("no-such.toml"));
    ensure!(refusal(&scratch)?.contains(&scratch.display().to_string()), "a folder as configuration");
    let left = fs::read_dir(&scratch)?.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
    ensure!(left == ["config.toml"], "a refused daemon left something: {left:?}");
    nothing_at_all(node, &before)?;
    fs::remove_dir_all(&scratch)?;

    let default = command::run(node.crisp_command().args(["config", "default"]))?.ok()?;
    ensure!(default.contains("bridge") && default.lines().any(|line| line.starts_with('#')), "{default}");
    Ok(())
}

fn sandboxes(node: &mut Node) -> Result<()> {
    let before = node.snapshot()?;
    let config = node.pod_config("refused");
    let request =
        cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: "kata".to_owned() };
    let message =
        node.cri().run_pod_sandbox(request).err().context("an unknown runtime handler was accepted")?;
    ensure!(message.message().contains("kata"), "{message:?}");

    let mut bad = config.clone();
    bad.hostname = "x".repeat(65);
    ensure!(node.cri().run_pod(&bad).is_err(), "a hostname of 65 bytes was accepted");
    let mut bad = config.clone();
    bad.metadata = None;
    ensure!(node.cri().run_pod(&bad).is_err(), "a sandbox without metadata was accepted");
    let mut bad = config.clone();
    bad.linux.as_mut().context("linux")?.cgroup_parent = "system.slice".to_owned();
    let message = node.cri().run_pod(&bad).err().context("a slice was accepted by the cgroupfs driver")?;
    ensure!(message.message().contains("system.slice"), "{message:?}");
    let mut bad = config.clone();
    bad.linux.as_mut().context("linux")?.cgroup_parent = "/a/../../b".to_owned();
    ensure!(node.cri().run_pod(&bad).is_err(), "a cgroup parent with .. was accepted");
    ensure!(node.cri().pods()?.is_empty());
    node.wait_for_return(&before).context("after refused sandboxes")?;
    // The name is free again.
    let pod = node.run_pod_as(config)?;
    node.end_pod(&pod)
}

fn archives(node: &mut Node) -> Result<()> {
    let path = node.folder().join("not-an-image.tar");
    fs::write(&path, "this is no archive")?;
    names(node, &["import", &path.display().to_string()], "not-an-image.tar")?;
    names(node, &["import", "/no/such/archive"], "/no/such/archive")?;
    let empty = node.folder().join("empty-folder");
    fs::create_dir(&empty)?;
    names(node, &["import", &empty.display().to_string()], "empty-folder")?;
    for arguments in
        [&["logs", "no-such-pod"][..], &["inspect", "no-such-pod"], &["exec", "no-such-pod", "true"]]
    {
        names(node, arguments, "no-such-pod")?;
    }
    Ok(())
}
