//! Where tests run: what this host can do, and which folders, binaries and tools they use.
//!
//! Everything can be set from outside by an environment variable named `CRISP_*`; hack/node and hack/vm set them. Must
//! not know: which tests there are.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::host;

/// Where Debian's package containernetworking-plugins has its programs.
pub const CNI_PLUGINS: &str = "/usr/lib/cni";

/// A capability that a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Controllers cpu, cpuset, memory and pids in a cgroup v2 hierarchy.
    Controllers,
    /// crictl.
    Crictl,
    /// Debian's docker-registry.
    Registry,
    /// A kernel that uses AppArmor, and the program that loads profiles.
    AppArmor,
    /// Debian's CNI plugins, and what they call.
    CniPlugins,
    /// A kernel of the tests' own, whose clock may be set and whose disks may fail.
    OwnKernel,
}

/// What keeps a test with these needs from running here; `None`: nothing does.
pub fn obstacle(needs: &[Need]) -> Option<String> {
    ground().or_else(|| needs.iter().find_map(|need| missing(*need)))
}

/// What every test needs: root, and a place where it may make bridges, mounts and cgroups.
fn ground() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    if env::var_os("CRISP_VM").is_none() && env::var_os("CRISP_NODE").is_none() {
        return Some("not in a place of its own: run through hack/node or hack/vm".to_owned());
    }
    host::cgroup_root().is_none().then(|| "no cgroup v2 is mounted".to_owned())
}

fn missing(need: Need) -> Option<String> {
    match need {
        Need::Controllers => missing_controllers(),
        Need::Crictl => (!crictl().is_file()).then(|| format!("no crictl at {}", crictl().display())),
        Need::AppArmor => missing_apparmor(),
        Need::OwnKernel => {
            env::var_os("CRISP_VM").is_none().then(|| "the kernel is not the tests' own".to_owned())
        }
        Need::CniPlugins => {
            let missing =
                [CNI_PLUGINS, "/usr/sbin/iptables"].map(Path::new).into_iter().find(|path| !path.exists());
            missing.map(|path| format!("no {}", path.display()))
        }
        Need::Registry => (!registry().is_file()).then(|| format!("no {}", registry().display())),
    }
}

fn missing_controllers() -> Option<String> {
    let file = host::cgroup_root()?.join("cgroup.controllers");
    let present = fs::read_to_string(&file).unwrap_or_default();
    let absent: Vec<_> = ["cpu", "cpuset", "memory", "pids"]
        .into_iter()
        .filter(|c| !present.split_whitespace().any(|p| p == *c))
        .collect();
    (!absent.is_empty()).then(|| format!("cgroup v2 controllers missing: {}", absent.join(" ")))
}

fn missing_apparmor() -> Option<String> {
    if !has_apparmor() {
        return Some("the kernel does not use AppArmor".to_owned());
    }
    apparmor_parser().is_none().then(|| "no apparmor_parser".to_owned())
}

/// Whether the kernel uses AppArmor.
pub fn has_apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y")
}

/// The program that loads AppArmor profiles.
pub fn apparmor_parser() -> Option<PathBuf> {
    let usual = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"].map(PathBuf::from);
    find_in_path("apparmor_parser").or_else(|| usual.into_iter().find(|path| path.is_file()))
}

/// Whether cgroup limits hold here.
pub fn has_controllers() -> bool {
    host::cgroup_root().is_some() && missing_controllers().is_none()
}

/// Whether the node's process 1 is systemd, and crisp is to have it make the cgroups (hack/systemd).
pub fn under_systemd() -> bool {
    env::var("CRISP_CGROUP_DRIVER").is_ok_and(|driver| driver == "systemd")
}

/// The repository.
pub fn top() -> PathBuf {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR"));
    built_in.parent().unwrap_or(built_in).to_path_buf()
}

/// A built binary of the project: from `CRISP_BIN_DIR`, else from target/release.
///
/// # Errors
/// It is not there.
pub fn binary(name: &str) -> Result<PathBuf> {
    let folder = env::var_os("CRISP_BIN_DIR").map_or_else(|| top().join("target/release"), PathBuf::from);
    let path = folder.join(name);
    ensure!(path.is_file(), "no {}: build it with hack/build, or set CRISP_BIN_DIR", path.display());
    path.canonicalize().with_context(|| format!("resolve {}", path.display()))
}

/// crictl: `CRISP_CRICTL`, else the one in PATH, else the one hack/setup builds.
pub fn crictl() -> PathBuf {
    env::var_os("CRISP_CRICTL")
        .map(PathBuf::from)
        .or_else(|| find_in_path("crictl"))
        .unwrap_or_else(|| top().join(".cache/bin/crictl"))
}

/// docker-registry, as hack/images unpacks it.
fn registry() -> PathBuf {
    top().join(".cache/sysroot/usr/bin/docker-registry")
}

fn find_in_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A folder on a file system that can hold an overlay's upper directory: `CRISP_VM_DISK`, else the temporary folder.
pub fn disk() -> PathBuf {
    env::var_os("CRISP_VM_DISK").map_or_else(env::temp_dir, PathBuf::from)
}

/// A folder for state that dies with the kernel: /run, where it is a tmpfs one may write to, else the temporary folder.
pub fn volatile() -> PathBuf {
    let run = PathBuf::from("/run");
    let tmpfs =
        nix::sys::statfs::statfs(&run).is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC);
    if tmpfs { run } else { env::temp_dir() }
}

/// How often a racy or random test tries: `natively` times, `emulated` times in a virtual machine without hardware
/// support, or as often as `CRISP_ROUNDS` says.
pub fn rounds(natively: usize, emulated: usize) -> usize {
    let asked = env::var("CRISP_ROUNDS").ok().and_then(|text| text.parse().ok());
    asked.unwrap_or(if env::var_os("CRISP_VM").is_some() { emulated } else { natively })
}
