//! What a manifest can say beyond the examples, played from the pull to the last line of the log.

use std::fs::{self, File};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::image;
use crisp_tests::images::Registry;
use crisp_tests::node::Node;
use crisp_tests::place::Need;
use crisp_tests::wait;

use crate::case::Case;
use crate::network;
use crate::play::Play;
use crate::refusals::nothing_left;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[Case {
    name: "a_manifest_is_played_word_by_word",
    needs: &[Need::Registry],
    images: &[],
    run: features,
}];

const ALWAYS: &str = "docker.io/crisp/test-plain:1";
const IF_NOT_PRESENT: &str = "docker.io/crisp/test-gzip:1";

/// The manifest; `FOLDER` stands for a folder of the host.
const MANIFEST: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: features, namespace: shown, labels: {app: demo}}
spec:
  hostname: features-host
  restartPolicy: Never
  securityContext: {runAsUser: 1234, runAsGroup: 2345, fsGroup: 3456}
  volumes:
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 3Mi}}
  - {name: there, hostPath: {path: FOLDER/there, type: Directory}}
  - {name: made, hostPath: {path: FOLDER/made, type: DirectoryOrCreate}}
  containers:
  - name: talker
    image: docker.io/crisp/test-plain:1
    imagePullPolicy: Always
    workingDir: /memory
    command: ["sh", "-c"]
    args:
    - |
      echo first; echo to stderr >&2
      while ! test -e /memory/go; do sleep 0.1; done; echo second
      while ! test -e /memory/end; do sleep 0.1; done; echo last
    env:
    - {name: PLAIN, value: "some words"}
    - {name: TWICE, value: "$(PLAIN) twice, $$(PLAIN)"}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    volumeMounts:
    - {name: memory, mountPath: /memory}
    - {name: there, mountPath: /there, readOnly: true}
  - name: root
    image: docker.io/crisp/test-gzip:1
    imagePullPolicy: IfNotPresent
    command: ["sh", "-c", "id -u >/made/by; while ! test -e /memory/end; do sleep 0.1; done"]
    securityContext: {runAsUser: 0, runAsGroup: 0, capabilities: {add: [SYS_TIME]}}
    volumeMounts:
    - {name: memory, mountPath: /memory}
    - {name: made, mountPath: /made}
"#;

fn features(node: &mut Node) -> Result<()> {
    let registry = Registry::start(&node.registry_hosts(), false)?;
    remove_images(node)?;
    let folder = node.folder().join("host");
    fs::create_dir_all(folder.join("there"))?;
    fs::write(folder.join("there/note"), "from the host\n")?;
    let manifest = node.folder().join("features.yaml");
    fs::write(&manifest, MANIFEST.replace("FOLDER", &folder.display().to_string()))?;
    let manifest = manifest.display().to_string();

    let mut play = Play::start(node, manifest.clone())?;
    let (talker, root) = (play.running("talker")?, play.running("root")?);
    inside(node, &talker, &network::ips(node, &play.sandbox()?)?[0].to_string())?;
    let status = node.cri().shell(&root, "grep CapEff /proc/self/status")?;
    let mask = u64::from_str_radix(status.trim_start_matches("CapEff:").trim(), 16)?;
    ensure!(mask >> 25 & 1 == 1, "no CAP_SYS_TIME: {status}");
    wait::until("a file on the host", wait::LONG, || match fs::read_to_string(folder.join("made/by")) {
        Ok(text) if text == "0\n" => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    followed(node, &talker)?;
    ensure!(play.wait_for_end()?.success(), "{}", play.said());
    let told = play.said();
    told_in_order(
        &told,
        &[
            &format!("pulling {ALWAYS}"),
            &format!("pulling {IF_NOT_PRESENT}"),
            "is ready: 10.213.",
            "container talker started",
            "container root started",
            "pod shown/features: Succeeded",
            "  talker: Completed (0)",
            "  root: Completed (0)",
            "crisp play --down",
        ],
    )?;
    ensure!(told.contains("container talker ended: Completed (0)"), "{told}");
    play.down()?;
    ensure!(node.cri().pods()?.is_empty() && node.cri().containers()?.is_empty());

    // Once more: what is there is not pulled again, unless the manifest says so.
    let mut play = Play::start(node, manifest.clone())?;
    play.running("root")?;
    let told = play.said();
    ensure!(told.contains(&format!("pulling {ALWAYS}")) && !told.contains(IF_NOT_PRESENT), "{told}");
    play.end()?;

    // Always is an order: an image that is here is not good enough.
    drop(registry);
    let host = node.snapshot()?;
    let refused = node.crisp(&["play", &manifest])?.refused()?;
    ensure!(refused.contains("ErrImagePull") && refused.contains(ALWAYS), "{refused}");
    nothing_left(node, &host, &[])?;
    remove_images(node)
}

/// What the first container finds.
fn inside(node: &Node, talker: &str, ip: &str) -> Result<()> {
    let shell = |line: &str| node.cri().shell(talker, line);
    ensure!(
        shell("echo \"$PLAIN|$TWICE|$POD|$IP\"")?
            == format!("some words|some words twice, $(PLAIN)|features|{ip}\n")
    );
    ensure!(shell("hostname; pwd")? == "features-host\n/memory\n");
    ensure!(shell("id -u; id -g; id -G | tr ' ' '\\n' | grep 3456")? == "1234\n2345\n3456\n");
    ensure!(shell("cat /there/note")? == "from the host\n");
    for forbidden in ["touch /at-the-root", "touch /there/x"] {
        let said = node.cri().exec(talker, &["sh", "-c", forbidden])?;
        ensure!(said.code != 0 && said.stderr.contains("Read-only file system"), "{forbidden}: {said:?}");
    }
    let status = shell("cat /proc/self/status")?;
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"] {
        ensure!(status.contains(line), "no {line}: {status}");
    }
    let mounted = shell("grep ' /memory tmpfs ' /proc/mounts")?;
    ensure!(mounted.contains("size=3072k"), "{mounted}");
    let full = node.cri().exec(talker, &["dd", "if=/dev/zero", "of=/memory/big", "bs=1M", "count=4"])?;
    ensure!(full.code != 0 && full.stderr.contains("No space left"), "{full:?}");
    shell("rm /memory/big").map(drop)
}

/// `crisp logs -f` prints what comes later, and ends with the container.
fn followed(node: &Node, talker: &str) -> Result<()> {
    let path = node.folder().join("followed");
    let file = File::create(&path)?;
    let mut child = node
        .crisp_command()
        .args(["logs", "--follow", "shown/features", "talker"])
        .stdin(Stdio::null())
        .stdout(file)
        .spawn()?;
    let (mut printed, mut ended) = (String::new(), None);
    for (word, file) in [("first", "go"), ("second", "end"), ("last", "")] {
        wait::until(&format!("{word:?} from crisp logs -f"), wait::LONG, || {
            printed = fs::read_to_string(&path).map_err(|error| error.to_string())?;
            if printed.ends_with(&format!("{word}\n")) || word == "first" && printed.contains("first\n") {
                Ok(())
            } else {
                Err(printed.clone())
            }
        })?;
        ensure!(word == "last" || child.try_wait()?.is_none(), "it has ended after {printed:?}");
        if !file.is_empty() {
            node.cri().shell(talker, &format!("touch /memory/{file}"))?;
        }
    }
    wait::until_true("the end of crisp logs -f", wait::LONG, || {
        ended = child.try_wait().ok().flatten();
        ended.is_some()
    })?;
    ensure!(ended.context("no status")?.success(), "{ended:?}");
    let mut lines: Vec<_> = printed.lines().collect();
    lines.retain(|line| *line != "to stderr");
    ensure!(lines == ["first", "second", "last"] && printed.contains("to stderr\n"), "{printed:?}");
    Ok(())
}

fn told_in_order(told: &str, parts: &[&str]) -> Result<()> {
    let mut rest = told;
    for part in parts {
        rest = rest.split_once(part).with_context(|| format!("no {part:?} in its place: {told}"))?.1;
    }
    Ok(())
}

fn remove_images(node: &Node) -> Result<()> {
    for name in [ALWAYS, IF_NOT_PRESENT] {
        node.cri().remove_image(cri::RemoveImageRequest { image: Some(image(name)) })?;
    }
    Ok(())
}
