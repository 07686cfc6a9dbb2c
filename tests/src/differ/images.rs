//! The images of the comparison: nothing but the probe, in a root file system that shows what a runtime adds to it.
//!
//! Must not know: which scenario uses which.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use crate::build::{Build, Tar};
use crate::{command, place};

/// An image whose program is the probe.
pub const PLAIN: &str = "docker.io/crisp/differ:1";
/// An image with a user, a working directory, a volume and an entry point of its own.
pub const USER: &str = "docker.io/crisp/differ-user:1";
/// What containerd holds a sandbox's namespaces with.
pub const PAUSE: &str = "docker.io/crisp/differ-pause:1";

const PATH: &str = "PATH=/usr/local/bin:/bin:/from-image";
const PASSWD: &str = "root:x:0:0:root:/root:/probe\napp:x:1234:1234::/home/app:/probe\n\
                      other:x:1500:1501::/nowhere:/probe\nnobody:x:65534:65534:nobody:/:/probe\n";
const GROUP: &str =
    "root:x:0:root\naudio:x:29:app,other\napp:x:1234:\nextra:x:4321:someone,app\nmany:x:4322:other,root\n";

/// Builds all images below `folder`; returns the name, layout and tar archive of each.
///
/// # Errors
/// The probe has not been built, or a file cannot be written.
pub fn build(folder: &Path) -> Result<Vec<(&'static str, PathBuf, PathBuf)>> {
    let probe = fs::read(place::binary("probe")?)?;
    let base = || {
        let tar = Tar::default().entry(b'0', "probe", "", &probe, 0o755).dir("etc").dir("bin").dir("run");
        let tar = tar.file("etc/passwd", PASSWD.as_bytes()).file("etc/group", GROUP.as_bytes());
        Build::empty().layer(tar.entry(b'5', "tmp", "", b"", 0o1777))
    };
    let plain = base().set("Env", json!([PATH, "FROM_IMAGE=yes", "CHANGED=image", "EMPTY="]));
    let user = base()
        .layer(
            Tar::default().dir("home").dir("home/app").dir("declared").file("declared/file", b"of the image"),
        )
        .set("Env", json!([PATH, "HOME=/from/image"]))
        .set("User", json!("app"))
        .set("WorkingDir", json!("/home/app"))
        .set("Volumes", json!({"/declared": {}}))
        .set("Entrypoint", json!(["/probe", "--stay", "of the entry point"]))
        .set("Cmd", json!(["of the command"]));
    let pause = Tar::default().entry(b'0', "pause", "", &probe, 0o755);
    let pause = Build::empty().layer(pause).set("Entrypoint", json!(["/pause", "--stay"]));
    let images = [(PLAIN, plain), (USER, user), (PAUSE, pause)];
    let written = images.into_iter().enumerate().map(|(number, (name, image))| {
        let layout = folder.join(number.to_string());
        image.write(name, &layout)?;
        let archive = folder.join(format!("{number}.tar"));
        command::run(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&layout).arg("."))?
            .ok()
            .context("pack an image")?;
        Ok((name, layout, archive))
    });
    written.collect()
}
