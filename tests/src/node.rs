//! A crisp of a test's own: its daemon with a socket, configuration, state, bridge and cgroup that nobody else uses.
//!
//! The root directory, and with it the images, is shared by all nodes of one test process: importing an image again for
//! every test would be most of a run's time. Must not know: how the daemon works inside.

mod daemon;
mod images;
mod pods;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

pub use pods::Pod;

use crate::command::{self, Finished};
use crate::cri::Cri;
use crate::host::{self, Scope, Snapshot};
use crate::{place, wait};

/// How deep to look for left-overs below the root directory. Deeper down lie the files of images.
const ROOT_DEPTH: usize = 3;
/// How deep to look for left-overs below the state directory.
const STATE_DEPTH: usize = 8;

/// The root directory that all nodes of this process share.
fn shared_root() -> Result<&'static Path> {
    static ROOT: OnceLock<TempDir> = OnceLock::new();
    if ROOT.get().is_none() {
        let made = tempfile::Builder::new().prefix("crisp-root-").tempdir_in(place::disk());
        let made = made.with_context(|| format!("make a root directory in {}", place::disk().display()))?;
        // Another thread may have been faster; then this one's folder goes away again.
        let _ = ROOT.set(made);
    }
    Ok(ROOT.get().context("no root directory")?.path())
}

/// Removes the shared root directory. Statics are not dropped, so the test program calls this at its end.
///
/// # Errors
/// Something in it cannot be removed.
pub fn remove_shared_root() -> Result<()> {
    let root = shared_root()?;
    fs::remove_dir_all(root).with_context(|| format!("remove {}", root.display()))
}

/// One crisp.
#[derive(Debug)]
pub struct Node {
    folder: TempDir,
    root: PathBuf,
    crisp: PathBuf,
    scope: Scope,
    daemon: Option<Child>,
    cri: Option<Cri>,
    /// Appended to the configuration file that [`Node::start`] writes.
    extra_config: String,
    /// More of its section `[network]`.
    network: String,
}

impl Node {
    /// Makes the folders of a node and starts its daemon.
    ///
    /// # Errors
    /// The binaries are missing, or the daemon does not come up.
    pub fn start() -> Result<Self> {
        let mut node = Self::prepare("")?;
        node.serve()?;
        Ok(node)
    }

    /// Makes the folders of a node and starts no daemon. `extra_config` is added to its configuration file.
    ///
    /// # Errors
    /// The binaries are missing, or a folder cannot be made.
    pub fn prepare(extra_config: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let crisp = place::binary("crisp")?;
        let monitor = place::binary("crisp-monitor")?;
        let folder = tempfile::Builder::new().prefix("crisp-node-").tempdir_in(place::volatile())?;
        let cgroup_root = std::env::var_os("CRISP_CGROUP_ROOT").map(PathBuf::from).or_else(host::cgroup_root);
        let scope = Scope {
            cgroup_root: cgroup_root.context("no cgroup v2 is mounted")?,
            cgroup_parent: match place::under_systemd() {
                // A dash would make it a slice of a slice.
                true => format!("/crisptest{}x{number}.slice", std::process::id()),
                false => format!("/crisp-test-{}-{number}", std::process::id()),
            },
            folders: vec![
                (folder.path().join("state"), STATE_DEPTH),
                (folder.path().join("play"), STATE_DEPTH),
                (shared_root()?.to_path_buf(), ROOT_DEPTH),
            ],
            monitor,
        };
        // A slice comes and goes with what is in it.
        if !place::under_systemd() {
            fs::create_dir(scope.cgroup_root.join(&scope.cgroup_parent[1..]))
                .context("make the parent cgroup")?;
        }
        let node = Self {
            root: shared_root()?.to_path_buf(),
            folder,
            crisp,
            scope,
            daemon: None,
            cri: None,
            extra_config: extra_config.to_owned(),
            // What is compared before and after must not change by itself.
            network: "pool = 0".to_owned(),
        };
        fs::create_dir_all(node.logs())?;
        fs::create_dir_all(node.registry_hosts())?;
        fs::write(node.config(), node.configuration())?;
        fs::write(node.crictl_config(), node.crictl_configuration())?;
        Ok(node)
    }

    fn configuration(&self) -> String {
        format!(
            r#"[cgroup]
root = "{cgroup_root}"
driver = "{driver}"
default_parent = "{default_parent}"
require_controllers = {require}

[network]
bridge = "crisp-test0"
ipv4 = "10.213.0.0/16"
ipv6 = "fd00:c215::/64"
{network}

[image]
hosts_dir = "{hosts}"

[container]
cdi_spec_dirs = ["{cdi}/low", "{cdi}/high"]
{extra}
"#,
            cgroup_root = self.scope.cgroup_root.display(),
            driver = if place::under_systemd() { "systemd" } else { "cgroupfs" },
            default_parent = match place::under_systemd() {
                true => self.scope.cgroup_parent.clone(),
                false => self.cgroup_below("default"),
            },
            require = place::has_controllers(),
            hosts = self.registry_hosts().display(),
            cdi = self.cdi().display(),
            network = self.network,
            extra = self.extra_config,
        )
    }

    /// Writes the configuration file anew, with these lines in its section `[network]` in place of `pool = 0`, for the
    /// daemon that is started next.
    ///
    /// # Errors
    /// The daemon runs, or the file cannot be written.
    pub fn configure_network(&mut self, lines: &str) -> Result<()> {
        ensure!(self.daemon.is_none(), "the daemon runs");
        lines.clone_into(&mut self.network);
        fs::write(self.config(), self.configuration()).context("write the configuration")
    }

    fn crictl_configuration(&self) -> String {
        let endpoint = self.endpoint();
        format!("runtime-endpoint: {endpoint}\nimage-endpoint: {endpoint}\ntimeout: 120\n")
    }

    /// The client of the running daemon.
    ///
    /// # Panics
    /// No daemon runs: a test that asks then has a bug.
    pub fn cri(&self) -> &Cri {
        self.cri.as_ref().expect("the daemon runs")
    }

    /// Makes sure that images are there, from the layouts of hack/images.
    ///
    /// # Errors
    /// A layout is missing, or the import is refused.
    pub fn ensure_images(&self, names: &[&str]) -> Result<()> {
        for name in names {
            if self.cri().image_id(name)?.is_none() {
                let layout = crate::images::layout(name)?;
                self.crisp(&["import", &layout.display().to_string()])?.ok()?;
                ensure!(self.cri().image_id(name)?.is_some(), "{} holds no {name}", layout.display());
            }
        }
        Ok(())
    }

    /// Runs a `crisp` command against this node to its end.
    ///
    /// # Errors
    /// It cannot be run; its exit code is the caller's to judge.
    pub fn crisp(&self, arguments: &[&str]) -> Result<Finished> {
        command::run(self.crisp_command().args(arguments))
    }

    /// A `crisp` command against this node.
    pub fn crisp_command(&self) -> Command {
        let mut command = Command::new(&self.crisp);
        command.arg("--endpoint").arg(self.endpoint());
        // A crash loop is to be seen looping, not to be waited for.
        command.env("CRISP_PLAY_DIR", self.folder.path().join("play")).env("CRISP_PLAY_BACKOFF", "1");
        command
    }

    /// Runs a `crictl` command against this node to its end.
    ///
    /// # Errors
    /// It cannot be run; its exit code is the caller's to judge.
    pub fn crictl(&self, arguments: &[&str]) -> Result<Finished> {
        command::run(&mut self.crictl_command(arguments))
    }

    /// A `crictl` command against this node.
    pub fn crictl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(place::crictl());
        command.arg("--config").arg(self.crictl_config()).args(arguments);
        command
    }

    /// The host as it is now, as far as this node can change it.
    ///
    /// # Errors
    /// Something that must be readable is not.
    pub fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::take(&self.scope)
    }

    /// Waits until the host looks as it did in `before`.
    ///
    /// # Errors
    /// It does not; the error says what is left over.
    pub fn wait_for_return(&self, before: &Snapshot) -> Result<()> {
        before.wait_for_return(&self.scope, Duration::from_secs(60)).with_context(|| {
            let lives = self.daemon_pid().is_ok_and(host::lives);
            if lives { "the daemon runs".to_owned() } else { "the daemon has ended".to_owned() }
        })
    }

    /// Where this node's things are.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Path of the cgroup, or the slice, `name` below this node's own.
    pub fn cgroup_below(&self, name: &str) -> String {
        let parent = &self.scope.cgroup_parent;
        match parent.strip_suffix(".slice") {
            Some(stem) => format!("{parent}{stem}-{}.slice", name.replace('-', "_")),
            None => format!("{parent}/{name}"),
        }
    }

    /// The folder of a cgroup below the cgroup root.
    pub fn cgroup(&self, path: &str) -> PathBuf {
        self.scope.cgroup_root.join(path.trim_start_matches('/'))
    }

    /// The folder of the directories of CDI spec files, `low` and `high`; nobody has made them.
    pub fn cdi(&self) -> PathBuf {
        self.folder.path().join("cdi")
    }

    /// The socket as a CRI endpoint.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.folder.path().join("crisp.sock").display())
    }

    /// This node's own folder; everything in it goes away with the node.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Gives the daemon that is started next another root directory, which is the caller's to take away. The images of
    /// all nodes stay where they are.
    ///
    /// # Errors
    /// The daemon runs.
    pub fn use_root(&mut self, root: PathBuf) -> Result<PathBuf> {
        ensure!(self.daemon.is_none(), "the daemon runs");
        Ok(std::mem::replace(&mut self.root, root))
    }

    /// Root directory of the daemon.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    /// The folder with a folder for each registry host (`hosts.toml`).
    pub fn registry_hosts(&self) -> PathBuf {
        self.folder.path().join("hosts.d")
    }

    /// The folder of all pods' logs, for sandboxes made by [`Node::pod_config`].
    pub fn logs(&self) -> PathBuf {
        self.folder.path().join("logs")
    }

    fn crictl_config(&self) -> PathBuf {
        self.folder.path().join("crictl.yaml")
    }

    /// What the daemon has written to its standard output and error.
    pub fn daemon_log(&self) -> PathBuf {
        self.folder.path().join("daemon.log")
    }

    /// The last part of what the daemon has written to its standard output and error.
    pub fn daemon_said(&self) -> String {
        let text = fs::read(self.daemon_log()).unwrap_or_default();
        let tail = &text[text.len().saturating_sub(8000)..];
        format!("--- the daemon's log\n{}", String::from_utf8_lossy(tail))
    }

    /// Takes the node apart: no daemon, no parent cgroup, no folder.
    ///
    /// # Errors
    /// The daemon does not end well, or has panicked, or the cgroup is still in use.
    pub fn finish(mut self) -> Result<()> {
        if self.daemon.is_some() {
            self.stop()?;
        }
        // A program built for tests outlives a panic of one of its tasks; the one that people run does not.
        let said = fs::read(self.daemon_log()).unwrap_or_default();
        let panicked = said.windows(12).any(|bytes| bytes == b"panicked at ");
        ensure!(!panicked, "the daemon has panicked\n{}", self.daemon_said());
        let parent = self.cgroup(&self.scope.cgroup_parent.clone());
        match fs::remove_dir(&parent) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && place::under_systemd() => Ok(()),
            removed => removed.with_context(|| format!("remove {}", parent.display())),
        }
    }
}

impl Drop for Node {
    /// After a failed test: whatever is left is taken away by force, so that the next test finds a clean host. Errors
    /// are of no use here, the test has failed already.
    fn drop(&mut self) {
        if let Some(cri) = self.cri.take() {
            for pod in cri.pods().unwrap_or_default() {
                let _ = cri.stop_pod(&pod.id);
                let _ = cri.remove_pod(&pod.id);
            }
        }
        // Asked to end, it takes its bridge and its nft table away; one that does not end is killed.
        if self.daemon.is_some()
            && self.stop().is_err()
            && let Some(mut daemon) = self.daemon.take()
        {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let parent = self.cgroup(&self.scope.cgroup_parent.clone());
        if parent.exists() {
            let _ = fs::write(parent.join("cgroup.kill"), "1");
            remove_cgroup(&parent);
        }
    }
}

fn remove_cgroup(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = wait::until("an empty cgroup", Duration::from_secs(10), || fs::remove_dir(folder));
}
