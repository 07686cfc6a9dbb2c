//! crictl, unchanged: every command that the first version promises, each with what it prints.

use std::fs;

use anyhow::{Context, Result, ensure};
use crisp_tests::images::Registry;
use crisp_tests::node::Node;
use crisp_tests::place::Need;
use crisp_tests::wait;
use serde_json::Value;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "crictl_leads_a_pod_through_its_life",
        needs: &[Need::Crictl],
        images: &["busybox"],
        run: life,
    },
    Case { name: "crictl_handles_images", needs: &[Need::Crictl, Need::Registry], images: &[], run: images },
    Case { name: "crictl_shows_the_node", needs: &[Need::Crictl], images: &[], run: node_info },
    Case {
        name: "crictl_updates_limits_and_shows_usage",
        needs: &[Need::Crictl, Need::Controllers],
        images: &["busybox"],
        run: update,
    },
];

/// What a crictl command prints, without the line break at the end.
fn crictl(node: &Node, arguments: &[&str]) -> Result<String> {
    Ok(node.crictl(arguments)?.ok()?.trim_end().to_owned())
}

fn crictl_json(node: &Node, arguments: &[&str]) -> Result<Value> {
    let text = crictl(node, arguments)?;
    serde_json::from_str(&text).with_context(|| format!("crictl {arguments:?} printed no JSON: {text}"))
}

/// Writes pod.json and container.json as a person would; returns their paths.
fn configs(node: &Node, command: &[&str]) -> Result<(String, String)> {
    let pod = serde_json::json!({
        "metadata": {"name": "by-hand", "namespace": "default", "uid": "u1", "attempt": 1},
        "hostname": "by-hand",
        "log_directory": node.logs().join("by-hand"),
        "linux": {},
    });
    let container = serde_json::json!({
        "metadata": {"name": "app"}, "image": {"image": "busybox"}, "command": command, "log_path": "app.log", "linux": {},
    });
    let write = |name: &str, value: Value| -> Result<String> {
        let path = node.folder().join(name);
        fs::write(&path, value.to_string())?;
        Ok(path.display().to_string())
    };
    Ok((write("pod.json", pod)?, write("container.json", container)?))
}

fn life(node: &mut Node) -> Result<()> {
    let line = "echo hello from the container; trap 'exit 4' TERM; while :; do sleep 0.1; done";
    let (pod_json, container_json) = configs(node, &["sh", "-c", line])?;
    let pod = crictl(node, &["runp", &pod_json])?;
    ensure!(pod.len() == 64, "{pod}");
    let container = crictl(node, &["create", &pod, &container_json, &pod_json])?;
    ensure!(container.len() == 64, "{container}");
    ensure!(crictl(node, &["ps", "--all", "--state", "created", "--quiet"])? == container);
    crictl(node, &["start", &container])?;

    ensure!(crictl(node, &["pods", "--quiet", "--no-trunc"])? == pod);
    let table = crictl(node, &["pods"])?;
    ensure!(table.contains("by-hand") && table.contains("Ready"), "{table}");
    let table = crictl(node, &["ps"])?;
    ensure!(table.contains("app") && table.contains("Running") && table.contains(&pod[..13]), "{table}");

    let status = crictl_json(node, &["inspect", &container[..12]])?;
    ensure!(
        status["status"]["state"] == "CONTAINER_RUNNING" && status["status"]["id"] == container.as_str(),
        "{status}"
    );
    ensure!(status["info"]["pid"].as_i64().is_some_and(|pid| pid > 1), "{status}");
    ensure!(status["info"]["runtimeSpec"]["ociVersion"].is_string(), "{status}");
    let status = crictl_json(node, &["inspectp", &pod])?;
    ensure!(status["status"]["state"] == "SANDBOX_READY", "{status}");
    let ip = status["status"]["network"]["ip"].as_str().context("no ip")?;
    ensure!(ip.parse::<std::net::Ipv4Addr>().is_ok(), "{status}");

    ensure!(crictl(node, &["exec", "--sync", &container, "hostname"])? == "by-hand");
    let refusal = node.crictl(&["exec", "--sync", &container, "sh", "-c", "exit 6"])?;
    ensure!(!refusal.status.success() && refusal.stderr.contains('6'), "{refusal}");
    wait::until("the log", wait::LONG, || match crictl(node, &["logs", &container]) {
        Ok(text) if text == "hello from the container" => Ok(()),
        other => Err(format!("{other:?}")),
    })?;

    let stats = crictl_json(node, &["stats", "--output", "json", &container])?;
    ensure!(stats["stats"][0]["attributes"]["id"] == container.as_str(), "{stats}");
    let stats = crictl_json(node, &["statsp", "--output", "json", &pod])?;
    ensure!(stats["stats"][0]["attributes"]["id"] == pod.as_str(), "{stats}");

    crictl(node, &["stop", "--timeout", "100", &container])?;
    let status = crictl_json(node, &["inspect", &container])?;
    ensure!(status["status"]["state"] == "CONTAINER_EXITED" && status["status"]["exitCode"] == 4, "{status}");
    crictl(node, &["rm", &container])?;
    ensure!(crictl(node, &["ps", "--all", "--quiet"])?.is_empty());
    crictl(node, &["stopp", &pod])?;
    let table = crictl(node, &["pods"])?;
    ensure!(table.contains("NotReady"), "{table}");
    crictl(node, &["rmp", &pod])?;
    ensure!(crictl(node, &["pods", "--quiet"])?.is_empty());
    let refusal = node.crictl(&["inspectp", &pod])?;
    ensure!(!refusal.status.success(), "{refusal}");
    Ok(())
}

fn images(node: &mut Node) -> Result<()> {
    let _registry = Registry::start(&node.registry_hosts(), false)?;
    let name = "docker.io/crisp/test-plain:1";
    let said = crictl(node, &["pull", "crisp/test-plain:1"])?;
    ensure!(said.contains("sha256:"), "{said}");
    let listed = crictl_json(node, &["images", "--output", "json"])?;
    let listed = listed["images"].as_array().context("no list")?;
    let image =
        listed.iter().find(|image| image["repoTags"][0] == name).with_context(|| format!("{listed:?}"))?;
    let id = image["id"].as_str().context("no id")?;
    let table = crictl(node, &["images"])?;
    ensure!(table.contains("docker.io/crisp/test-plain") && table.contains(&id[7..20]), "{table}");
    let status = crictl_json(node, &["inspecti", name])?;
    ensure!(status["status"]["id"] == id && status["info"]["imageSpec"].is_object(), "{status}");
    let said = crictl(node, &["rmi", name])?;
    ensure!(said.contains("test-plain") || said.contains(&id[7..20]), "{said}");
    ensure!(!crictl(node, &["images"])?.contains("test-plain"));
    let refusal = node.crictl(&["pull", "crisp/no-such-image:1"])?;
    ensure!(!refusal.status.success() && refusal.stderr.contains("no-such-image"), "{refusal}");
    Ok(())
}

fn node_info(node: &mut Node) -> Result<()> {
    // All of this file is a promise about this version, and CRISP_CRICTL may name any other.
    let client = crictl(node, &["--version"])?;
    ensure!(client.starts_with("crictl version v1.36."), "these tests are about crictl 1.36: {client}");
    let info = crictl_json(node, &["info"])?;
    let conditions = info["status"]["conditions"].as_array().context("no conditions")?;
    for kind in ["RuntimeReady", "NetworkReady"] {
        ensure!(conditions.iter().any(|c| c["type"] == kind && c["status"] == true), "{info}");
    }
    ensure!(info["config"].is_object(), "the configuration is missing: {info}");
    let usage = crictl_json(node, &["imagefsinfo"])?;
    let systems = usage["status"]["imageFilesystems"].as_array().context("no image file systems")?;
    ensure!(systems.len() == 1 && systems[0]["fsId"]["mountpoint"].is_string(), "{usage}");
    let version = crictl(node, &["version"])?;
    ensure!(
        version.contains("RuntimeName:  crisp") && version.contains("RuntimeApiVersion:  v1"),
        "{version}"
    );
    Ok(())
}

fn update(node: &mut Node) -> Result<()> {
    let (pod_json, container_json) = configs(node, &["sleep", "3600"])?;
    let pod = crictl(node, &["runp", &pod_json])?;
    let container = crictl(node, &["create", &pod, &container_json, &pod_json])?;
    crictl(node, &["start", &container])?;
    crictl(
        node,
        &["update", "--memory", "50331648", "--cpu-quota", "30000", "--cpu-period", "100000", &container],
    )?;
    ensure!(crate::limits::read(node, &container, "memory.max")? == "50331648");
    ensure!(crate::limits::read(node, &container, "cpu.max")? == "30000 100000");
    let status = crictl_json(node, &["inspect", &container])?;
    ensure!(status["status"]["resources"]["linux"]["memoryLimitInBytes"] == "50331648", "{status}");
    let table = crictl(node, &["stats"])?;
    ensure!(table.contains(&container[..13]) && table.contains("app"), "{table}");
    let table = crictl(node, &["statsp"])?;
    ensure!(table.contains("by-hand"), "{table}");
    crictl(node, &["stopp", &pod])?;
    crictl(node, &["rmp", &pod])?;
    Ok(())
}
