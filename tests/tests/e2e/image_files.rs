//! Images as files, and what is known of their layers: save and import, check and heal, tree, the policy.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use crisp_tests::build::{Build, Tar};
use crisp_tests::cri::image;
use crisp_tests::images::Registry;
use crisp_tests::node::Node;
use crisp_tests::place::Need;
use crisp_tests::registry::{OneImage, Registry as Registry401};

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "a_saved_image_comes_back_as_the_same_image", needs: &[], images: &["busybox"], run: saved },
    Case { name: "an_archive_is_imported_from_standard_input", needs: &[], images: &["busybox"], run: piped },
    Case {
        name: "i15_a_damaged_layer_is_healed_under_a_running_container",
        needs: &[Need::Registry],
        images: &[],
        run: healed,
    },
    Case { name: "images_tree_shows_what_is_shared", needs: &[], images: &["busybox"], run: tree },
    Case {
        name: "a_pull_without_a_terminal_says_nothing_but_the_id",
        needs: &[Need::Registry],
        images: &[],
        run: silent,
    },
    Case {
        name: "an_image_that_the_policy_rejects_is_not_pulled",
        needs: &[Need::Registry],
        images: &[],
        run: policy,
    },
    Case { name: "credentials_come_from_a_helper", needs: &[], images: &[], run: helper },
];

fn shown(path: &std::path::Path) -> String {
    path.display().to_string()
}

fn remove(node: &Node, name: &str) -> Result<()> {
    node.remove_image(name)?;
    ensure!(node.cri().image_id(name)?.is_none(), "{name} is still there");
    Ok(())
}

fn saved(node: &mut Node) -> Result<()> {
    let name = "docker.io/crisp/test-saved:1";
    node.build_image(
        name,
        Build::on("busybox").layer(Tar::default().file("data", b"kept").file(".wh.etc", b"")),
    )?;
    let id = node.cri().image_id(name)?.context("no image")?;
    let file = node.folder().join("saved.tar");
    node.crisp(&["save", name, "-o", &shown(&file)])?.ok()?;
    remove(node, name)?;
    node.crisp(&["import", &shown(&file)])?.ok()?;
    ensure!(node.cri().image_id(name)?.as_ref() == Some(&id), "another id after save and import");
    let pod = node.run_pod("saved")?;
    let container = node.launch(&pod, "c", name, &["sleep", "3600"])?;
    let said = node.cri().shell(&container, "cat /data; ls / | grep etc || true")?;
    ensure!(said.starts_with("kept"), "{said}");
    node.end_pod(&pod)?;
    // What does not exist leaves no file.
    let none = node.folder().join("none.tar");
    node.crisp(&["save", "docker.io/crisp/nothing:1", "-o", &shown(&none)])?.refused()?;
    ensure!(
        !none.exists()
            && fs::read_dir(node.folder())?
                .flatten()
                .all(|e| { !e.file_name().to_string_lossy().starts_with(".crisp-save-") })
    );
    fs::remove_file(file)?;
    remove(node, name)
}

fn piped(node: &mut Node) -> Result<()> {
    let name = "docker.io/crisp/test-piped:1";
    node.build_image(name, Build::on("busybox").layer(Tar::default().file("piped", b"x")))?;
    let id = node.cri().image_id(name)?.context("no image")?;
    let mut save = node.crisp_command().args(["save", name]).stdout(Stdio::piped()).spawn()?;
    let archive = save.stdout.take().context("no output")?;
    // The image goes while it is being written: what is being exported stays until it is done.
    let file = node.folder().join("piped.tar");
    std::io::copy(&mut { archive }, &mut fs::File::create(&file)?)?;
    ensure!(save.wait()?.success());
    remove(node, name)?;
    let import = node.crisp_command().args(["import", "-"]).stdin(fs::File::open(&file)?).output()?;
    ensure!(import.status.success(), "{}", String::from_utf8_lossy(&import.stderr));
    ensure!(node.cri().image_id(name)?.as_ref() == Some(&id));
    fs::remove_file(file)?;
    remove(node, name)
}

fn healed(node: &mut Node) -> Result<()> {
    let registry = Registry::start(&node.registry_hosts(), false)?;
    let name = "docker.io/crisp/test-gzip:1";
    let id = node.cri().pull(name)?;
    let pod = node.run_pod("healed")?;
    let container = node.launch(&pod, "c", name, &["sleep", "3600"])?;
    let sum = "find /bin /etc -xdev -type f | sort | xargs md5sum 2>/dev/null";
    let before = node.cri().shell(&container, sum)?;
    // A file of a layer that the container has not opened: cut off, as a power cut leaves it.
    let verbose = crisp_proto::runtime::v1::ImageStatusRequest { image: Some(image(name)), verbose: true };
    let info: serde_json::Value =
        serde_json::from_str(node.cri().image_status(verbose)?.info.get("info").context("no info")?)?;
    let layers: Vec<&str> =
        info["layers"].as_array().context("layers")?.iter().filter_map(|l| l.as_str()).collect();
    let victim = layers
        .iter()
        .flat_map(|layer| {
            ["etc/passwd", "etc/group", "bin/busybox"].map(|f| std::path::Path::new(layer).join(f))
        })
        .find(|path| path.is_file())
        .context("no file to damage")?;
    let content = fs::read(&victim)?;
    // Another inode, so that what runs from the old one goes on.
    fs::remove_file(&victim)?;
    fs::write(&victim, &content[..content.len() / 2])?;
    let found = node.crisp(&["images", "check", name])?.refused()?;
    let _ = found;
    let damaged = node.crisp(&["images", "check", "--heal", name])?.ok()?;
    ensure!(damaged.contains("healed") && damaged.contains(" 0 damaged"), "{damaged}");
    ensure!(fs::read(&victim)? == content, "the file is not as it was");
    let after = node.cri().shell(&container, sum)?;
    ensure!(before == after, "the container sees other files:\n{before}\n{after}");
    let good = node.crisp(&["images", "check"])?.ok()?;
    ensure!(good.contains(" 0 damaged"), "{good}");
    node.end_pod(&pod)?;
    drop(registry);
    remove(node, &id)
}

fn tree(node: &mut Node) -> Result<()> {
    let names = ["docker.io/crisp/test-tree:1", "docker.io/crisp/test-tree:2"];
    for (name, content) in names.iter().zip(["one", "two"]) {
        node.build_image(name, Build::on("busybox").layer(Tar::default().file("own", content.as_bytes())))?;
    }
    let all = node.crisp(&["images", "tree", names[0], names[1]])?.ok()?;
    ensure!(all.contains("shared by") && all.contains("2 images, ") && all.contains("└─ "), "{all}");
    node.crisp(&["images", "tree", "docker.io/crisp/nothing:1"])?.refused()?;
    names.iter().try_for_each(|name| remove(node, name))
}

fn silent(node: &mut Node) -> Result<()> {
    let _registry = Registry::start(&node.registry_hosts(), false)?;
    let name = "docker.io/crisp/test-gzip:1";
    let output = node.crisp_command().args(["pull", name]).output()?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let id = node.cri().image_id(name)?.context("no image")?;
    ensure!(String::from_utf8_lossy(&output.stdout) == format!("{id}\n"), "{output:?}");
    remove(node, name)
}

fn policy(node: &mut Node) -> Result<()> {
    let _registry = Registry::start(&node.registry_hosts(), false)?;
    let file = node.folder().join("policy.json");
    let config = fs::read_to_string(node.config())?;
    node.stop()?;
    fs::write(
        node.config(),
        config.replace("[image]\n", &format!("[image]\npolicy = \"{}\"\n", file.display())),
    )?;
    node.serve()?;
    let name = "docker.io/crisp/test-gzip:1";
    fs::write(&file, r#"{"default":[{"type":"reject"}]}"#)?;
    let refused = node.cri().pull(name).err().context("pulled against the policy")?;
    ensure!(refused.message().starts_with("SignatureValidationFailed"), "{refused:?}");
    ensure!(node.cri().image_id(name)?.is_none());
    // Read anew for each pull.
    let text = r#"{"default":[{"type":"reject"}],"transports":{"docker":{"docker.io/crisp":[{"type":"insecureAcceptAnything"}]}}}"#;
    fs::write(&file, text)?;
    node.cri().pull(name)?;
    remove(node, name)?;
    node.stop()?;
    fs::write(node.config(), config)?;
    node.serve()
}

fn helper(node: &mut Node) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let folder = node.folder().join("helpers");
    fs::create_dir(&folder)?;
    // base64 of u:p
    let registry = Registry401::serve_to("app", "1", &OneImage::good(), &[], Some("Basic dTpw"))?;
    registry.announce(&node.registry_hosts())?;
    let name = format!("{}/app:1", registry.host());
    let refused = node.cri().pull(&name).err().context("pulled without credentials")?;
    ensure!(refused.message().contains("401"), "{refused:?}");
    let program = folder.join("docker-credential-crisptest");
    let script = "#!/bin/sh\nread -r server\nprintf '{\"ServerURL\":\"%s\",\"Username\":\"u\",\"Secret\":\"p\"}' \"$server\"\n";
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let file = folder.join("auth.json");
    fs::write(&file, format!(r#"{{"credHelpers":{{"{}":"crisptest"}}}}"#, registry.host()))?;
    let config = fs::read_to_string(node.config())?;
    node.stop()?;
    fs::write(
        node.config(),
        config.replace("[image]\n", &format!("[image]\nauth_file = \"{}\"\n", file.display())),
    )?;
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let mut command: Command = node.serve_command();
    let child =
        command.env("PATH", path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    node.adopt(child)?;
    node.cri().pull(&name)?;
    remove(node, &name)?;
    node.stop()?;
    fs::write(node.config(), config)?;
    fs::remove_dir_all(folder)?;
    node.serve()
}
