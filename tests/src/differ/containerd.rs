//! A containerd of one's own: configuration, process and socket, with runc and the reference CNI plugins beside it.
//!
//! Must not know: what it is asked.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::images::PAUSE;
use crate::cri::Cri;
use crate::{command, place, wait};

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    child: Child,
    folder: PathBuf,
    cri: Cri,
}

impl Containerd {
    /// Starts it with everything it keeps below `folder` (a disk that can hold an overlay) and `state` (volatile).
    ///
    /// # Errors
    /// A program is missing, or it does not come up; the error holds what it said.
    pub fn start(folder: &Path, state: &Path) -> Result<Self> {
        let program = place::binary("containerd")?;
        let programs = program.parent().context("a program in no folder")?.to_owned();
        let socket = state.join("containerd.sock");
        let nets = folder.join("net.d");
        fs::create_dir_all(&nets)?;
        fs::write(nets.join("10-differ.conflist"), NETWORK)?;
        let config = folder.join("config.toml");
        fs::write(&config, configuration(folder, state, &socket, &programs))?;
        let log = File::create(folder.join("containerd.log"))?;
        let mut search = vec![programs];
        search.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        // Where Debian has apparmor_parser.
        search.push("/usr/sbin".into());
        let mut child = Command::new(&program)
            .arg("--config")
            .arg(&config)
            .env("PATH", std::env::join_paths(search)?)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let ready = wait::until("containerd to answer", wait::LONG, || {
            if let Ok(Some(status)) = child.try_wait() {
                return Ok(Err(status));
            }
            let cri = Cri::new(&socket).map_err(|error| error.to_string())?;
            let status = cri.status(Default::default()).map_err(|status| status.to_string())?;
            let conditions = status.status.map(|status| status.conditions).unwrap_or_default();
            match conditions.iter().find(|condition| !condition.status) {
                Some(condition) => Err(condition.message.clone()),
                None => Ok::<_, String>(Ok(cri)),
            }
        });
        match ready {
            Ok(Ok(cri)) => Ok(Self { child, folder: folder.to_owned(), cri }),
            Ok(Err(status)) => bail!("containerd ended with {status}:\n{}", said(folder)),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                bail!("{error}\n{}", said(folder))
            }
        }
    }

    /// The client.
    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// Imports an image and waits until the CRI knows it.
    ///
    /// # Errors
    /// The import fails.
    pub fn import(&self, name: &str, archive: &Path, state: &Path) -> Result<()> {
        let mut ctr = Command::new(place::binary("ctr")?);
        ctr.arg("--address").arg(state.join("containerd.sock"));
        command::run(ctr.args(["--namespace", "k8s.io", "images", "import"]).arg(archive))?.ok()?;
        wait::until_true(&format!("containerd to know {name}"), wait::LONG, || {
            self.cri.image_id(name).is_ok_and(|id| id.is_some())
        })
    }

    /// The last part of what it has written.
    pub fn said(&self) -> String {
        said(&self.folder)
    }

    /// Ends it.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        wait::until("containerd to end", wait::LONG, || match self.child.try_wait() {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err("still running".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }
}

impl Drop for Containerd {
    /// After a failure nobody has stopped it; what it has left dies with hack/vm or hack/node.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn said(folder: &Path) -> String {
    let text = fs::read(folder.join("containerd.log")).unwrap_or_default();
    let tail = &text[text.len().saturating_sub(8000)..];
    format!("--- containerd's log\n{}", String::from_utf8_lossy(tail))
}

/// A bridge with addresses of both families; no masquerade, which would need iptables.
const NETWORK: &str = r#"{
  "cniVersion": "1.0.0", "name": "differ", "plugins": [{
    "type": "bridge", "bridge": "differ0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
    "ipam": {
      "type": "host-local",
      "ranges": [[{"subnet": "10.214.0.0/16"}], [{"subnet": "fd00:c216::/64"}]],
      "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    }
  }]
}
"#;

fn configuration(folder: &Path, state: &Path, socket: &Path, programs: &Path) -> String {
    format!(
        r#"version = 2
root = "{folder}/root"
state = "{state}/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.native", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.opt",
]

[grpc]
address = "{socket}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
stream_server_port = "0"
restrict_oom_score_adj = {bare}
disable_cgroup = {bare}
# What later versions have on by themselves, and what is of no use to leave off.
enable_unprivileged_ports = true
enable_unprivileged_icmp = true
disable_hugetlb_controller = false

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{programs}"
conf_dir = "{folder}/net.d"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{programs}/runc"
"#,
        folder = folder.display(),
        state = state.display(),
        socket = socket.display(),
        programs = programs.display(),
        // It gives its sandboxes a CPU weight, and natively there may be no right to lower the score.
        bare = !place::has_controllers(),
    )
}
