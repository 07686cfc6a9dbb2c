//! What an attack must leave as it was: the oracle of every adversarial test.
//!
//! [`around`] looks before and after. What it compares: the host as [`crate::host`] sees it (mounts, links, pins,
//! cgroups, processes, state); a [`Canary`] folder and files of the host that matter, byte for byte; settings below
//! `/proc/sys`; loop and device-mapper devices; the kernel's log; the daemon and the victim's monitor (same process, no
//! further descriptors or threads, no thread stuck, bounded memory); and a [`victim`](Victim) pod that ran all the
//! time.
//!
//! ```ignore
//! fn r99_nothing_gets_out(node: &mut Node) -> Result<()> {
//!     untouched::around(node, |node, canary| {
//!         let pod = node.run_pod("attacker")?;
//!         // ... try to reach canary.path(), then assert what the rule of the case says ...
//!         node.end_pod(&pod)
//!     })
//! }
//! ```
//!
//! A test that replaces the daemon on purpose makes an [`Untouched`] itself and says so by
//! [`Untouched::daemon_was_replaced`]. Must not know: which attacks there are.

mod canary;
mod process;
mod victim;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

pub use canary::{Canary, SECRET, tree};
pub use process::{Footprint, peak_kib};
pub use victim::Victim;

use crate::host::Snapshot;
use crate::node::Node;
use crate::{place, wait};

/// Files of the host that an escape would want to change.
const FILES: [&str; 6] =
    ["/etc/passwd", "/etc/shadow", "/etc/group", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// Settings, below `/proc/sys`, of the kernel and of the namespaces that the daemon lives in. A folder means all that
/// is in it.
const SETTINGS: [&str; 19] = [
    "kernel/core_pattern",
    "kernel/modprobe",
    "kernel/hostname",
    "kernel/domainname",
    "kernel/sysrq",
    "kernel/shm_rmid_forced",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "fs/mqueue",
    "vm/overcommit_memory",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_unprivileged_port_start",
    "net/ipv4/ping_group_range",
    "net/ipv4/conf/all",
];

/// How the world was.
#[derive(Debug)]
pub struct Untouched {
    canary: Canary,
    victim: Victim,
    host: Snapshot,
    files: BTreeMap<String, String>,
    settings: BTreeMap<String, String>,
    block_devices: Vec<String>,
    kernel_log: Option<File>,
    daemon: Footprint,
    monitor: Footprint,
}

/// Runs `attack` beside a victim and shows that nothing is different afterwards. Needs image busybox.
///
/// # Errors
/// The attack's own; or what has changed.
pub fn around(node: &mut Node, attack: impl FnOnce(&mut Node, &Canary) -> Result<()>) -> Result<()> {
    let before = Untouched::before(node)?;
    attack(node, &before.canary)?;
    before.after(node)
}

impl Untouched {
    /// Starts the victim and looks around.
    ///
    /// # Errors
    /// The victim does not start, or something that must be readable is not.
    pub fn before(node: &Node) -> Result<Self> {
        let victim = Victim::start(node).context("start the victim")?;
        Ok(Self {
            canary: Canary::make(&canary_folder(node)?)?,
            host: node.snapshot()?,
            files: files(node)?,
            settings: settings(),
            block_devices: block_devices()?,
            kernel_log: kernel_log(),
            daemon: Footprint::of(node.daemon_pid()?)?,
            monitor: Footprint::of(victim.monitor())?,
            victim,
        })
    }

    /// The folder that must not change.
    pub fn canary(&self) -> &Canary {
        &self.canary
    }

    /// The pod that runs beside the attack.
    pub fn victim(&self) -> &Victim {
        &self.victim
    }

    /// The test has ended the daemon and started another: from now on that one must not change.
    ///
    /// # Errors
    /// No daemon runs.
    pub fn daemon_was_replaced(&mut self, node: &Node) -> Result<()> {
        // What recovery opens is open once the victim has answered.
        self.victim.answers(node)?;
        self.daemon = Footprint::of(node.daemon_pid()?)?;
        self.monitor = Footprint::of(self.victim.monitor())?;
        Ok(())
    }

    /// Looks again, and ends the victim.
    ///
    /// # Errors
    /// What has changed.
    pub fn after(self, node: &Node) -> Result<()> {
        self.compare(node)?;
        self.victim.end(node).context("end the victim")
    }

    /// Looks again.
    ///
    /// # Errors
    /// What has changed; the first kind of things in which something has.
    pub fn compare(&self, node: &Node) -> Result<()> {
        self.canary.unchanged()?;
        same("files of the host", &self.files, &files(node)?)?;
        same("settings of the host", &self.settings, &settings())?;
        let devices = block_devices()?;
        ensure!(self.block_devices == devices, "block devices: {:?}, then {devices:?}", self.block_devices);
        self.victim.unharmed(node).context("the victim")?;
        self.daemon.wait_for_return(node.daemon_pid()?).context("the daemon")?;
        node.wait_for_return(&self.host).context("beside a pod that runs on")?;
        self.monitor.wait_for_return(self.victim.monitor()).context("the victim's monitor")?;
        let complaints = self.kernel_log.as_ref().map(complaints).transpose()?.unwrap_or_default();
        ensure!(complaints.is_empty(), "the kernel says:\n  {}", complaints.join("\n  "));
        Ok(())
    }

    /// The victim, for a test that has seen what it wanted to see.
    pub fn into_victim(self) -> Victim {
        self.victim
    }
}

/// One that is not there yet: a test may look around more than once.
fn canary_folder(node: &Node) -> Result<PathBuf> {
    let mut names = (0..100).map(|number| node.folder().join(format!("canary-{number}")));
    names.find(|path| !path.exists()).context("too many canaries")
}

/// The lines of two lists of facts that differ, as an error.
fn same(what: &str, before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Result<()> {
    let names = before.keys().chain(now.keys().filter(|name| !before.contains_key(*name)));
    let changed: Vec<_> = names
        .filter(|name| before.get(*name) != now.get(*name))
        .map(|name| format!("{name}: {:?}, then {:?}", before.get(name), now.get(name)))
        .collect();
    ensure!(changed.is_empty(), "{what} have changed:\n  {}", changed.join("\n  "));
    Ok(())
}

fn files(node: &Node) -> Result<BTreeMap<String, String>> {
    let own = [node.config(), place::binary("crisp")?, place::binary("crisp-monitor")?];
    let all = FILES.iter().map(PathBuf::from).chain(own).filter(|path| path.exists());
    all.map(|path| Ok((path.display().to_string(), canary::describe(&path)?))).collect()
}

fn settings() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for name in SETTINGS {
        let path = Path::new("/proc/sys").join(name);
        let inside = fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut paths: Vec<_> = inside.collect();
        paths.push(path);
        for path in paths {
            // Folders, and settings that can only be written, have nothing to compare.
            if let Ok(text) = fs::read_to_string(&path) {
                found.insert(path.display().to_string(), text);
            }
        }
    }
    found
}

fn block_devices() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/sys/block").context("list block devices")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("loop") || name.starts_with("dm-") {
            // A loop device that is in use has a folder `loop`.
            names.push(format!("{name} in use: {}", path.join("loop").exists()));
        }
    }
    names.sort();
    Ok(names)
}

/// The kernel's log, at its end; `None` where it may not be read.
fn kernel_log() -> Option<File> {
    let mut log = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open("/dev/kmsg").ok()?;
    log.seek(SeekFrom::End(0)).ok()?;
    Some(log)
}

/// What the kernel has complained about since.
fn complaints(mut log: &File) -> Result<Vec<String>> {
    const WORDS: [&str; 6] =
        ["WARNING:", "BUG:", "Oops", "general protection fault", "Call Trace", "hung_task"];
    let mut found = Vec::new();
    // The report of an OOM kill has a trace in it, of whoever needed the memory.
    let mut in_report = false;
    let mut record = vec![0; 8192];
    loop {
        match log.read(&mut record) {
            Ok(0) => return Ok(found),
            Ok(length) => {
                let text = String::from_utf8_lossy(&record[..length]);
                let line = text.lines().next().unwrap_or_default();
                in_report |= line.contains(" invoked oom-killer: ");
                if in_report && line.contains("Call Trace:") {
                    in_report = false;
                } else if WORDS.iter().any(|word| line.contains(word)) {
                    found.push(line.to_owned());
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(found),
            // Records were overwritten before they were read; the next read goes on behind them.
            Err(error) if error.raw_os_error() == Some(nix::libc::EPIPE) => {}
            Err(error) => return Err(error).context("read the kernel's log"),
        }
    }
}

/// Waits until `look` finds nothing any more.
pub(crate) fn wait_until_none(what: &str, mut look: impl FnMut() -> Result<Vec<String>>) -> Result<()> {
    wait::until(what, wait::LONG, || match look() {
        Ok(list) if list.is_empty() => Ok(()),
        Ok(list) => Err(list.join("\n  ")),
        Err(error) => Err(format!("{error:#}")),
    })
}
