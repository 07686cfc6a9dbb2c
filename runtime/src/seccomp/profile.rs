//! Profiles as people write them: the OCI form plus Docker's conditions and architecture map.
//!
//! Unknown fields are refused: a restriction that is not understood must not be left out silently.
//!
//! Must not know: how a profile becomes a program.

use oci_spec::runtime::{
    Arch, Capabilities, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompBuilder,
    LinuxSeccompFilterFlag, LinuxSyscall, LinuxSyscallBuilder,
};
use serde::Deserialize;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

/// Largest profile file, bytes.
const MAX_FILE: u64 = 1 << 20;

/// A profile that cannot be read or used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The file is missing, not readable, or a symbolic link (which may lead anywhere).
    #[error("{}: {error}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        error: std::io::Error,
    },
    /// A relative path, a directory, a pipe, more than 1 MiB.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Not JSON, or a field that is unknown or has a bad value.
    #[error("{}: {error}", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Which field, which line.
        error: serde_json::Error,
    },
    /// A field that makes no sense, or that crisp does not support.
    #[error("{field}: {reason}")]
    Field {
        /// Its path in the profile.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A seccomp profile, its conditions not yet decided.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<ArchMap>>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<PathBuf>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<Rule>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchMap {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
    name: Option<String>,
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    includes: Option<Conditions>,
    excludes: Option<Conditions>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Conditions {
    caps: Option<Vec<String>>,
    /// In Go's names, as Docker has it.
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// What conditions are decided by.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) architecture: Arch,
    /// Go's name of it.
    pub(super) go_name: &'static str,
    /// Major and minor number of the kernel.
    pub(super) kernel: (u32, u32),
}

impl Machine {
    /// This one.
    fn here() -> Self {
        let (architecture, go_name) = match std::env::consts::ARCH {
            "x86_64" => (Arch::ScmpArchX86_64, "amd64"),
            "aarch64" => (Arch::ScmpArchAarch64, "arm64"),
            "s390x" => (Arch::ScmpArchS390x, "s390x"),
            "powerpc64" => (Arch::ScmpArchPpc64le, "ppc64le"),
            "riscv64" => (Arch::ScmpArchRiscv64, "riscv64"),
            other => (Arch::ScmpArchNative, other),
        };
        // Every kernel that crisp runs on is newer than what profiles ask for, should the file be hidden.
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self { architecture, go_name, kernel: version(&release).unwrap_or((5, 14)) }
    }
}

/// `6.1.0-13-amd64` is (6, 1).
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

impl Profile {
    /// What CRI calls `RuntimeDefault`.
    pub fn runtime_default() -> Arc<Self> {
        static DEFAULT: LazyLock<Arc<Profile>> = LazyLock::new(|| {
            let text = include_str!("default.json");
            Arc::new(serde_json::from_str(text).expect("default.json is a profile: a test reads it"))
        });
        DEFAULT.clone()
    }

    /// Reads a profile from a regular file of the host, at most 1 MiB, given by an absolute path.
    ///
    /// # Errors
    /// [`ProfileError`], naming the path.
    pub fn read(path: &Path) -> Result<Self, ProfileError> {
        let file_error = |reason| ProfileError::File { path: path.to_owned(), reason };
        let read_error = |error| ProfileError::Read { path: path.to_owned(), error };
        if !path.is_absolute() {
            return Err(file_error("not an absolute path"));
        }
        // O_NONBLOCK: a pipe without a writer would block.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(read_error)?;
        if !file.metadata().map_err(read_error)?.is_file() {
            return Err(file_error("not a regular file"));
        }
        let mut text = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(read_error)?;
        if text.len() as u64 > MAX_FILE {
            return Err(file_error("larger than 1 MiB"));
        }
        serde_json::from_slice(&text).map_err(|error| ProfileError::Json { path: path.to_owned(), error })
    }

    /// Decides the conditions for this machine and a bounding set.
    ///
    /// # Errors
    /// [`ProfileError::Field`].
    pub fn resolve(&self, bounding: &Capabilities) -> Result<LinuxSeccomp, ProfileError> {
        static HERE: LazyLock<Machine> = LazyLock::new(Machine::here);
        self.resolve_on(bounding, &HERE)
    }

    pub(super) fn resolve_on(
        &self,
        bounding: &Capabilities,
        machine: &Machine,
    ) -> Result<LinuxSeccomp, ProfileError> {
        if self.listener_path.is_some() || self.listener_metadata.is_some() {
            return Err(field("listenerPath", "a notification listener is not supported"));
        }
        let architectures = match (&self.architectures, &self.arch_map) {
            (Some(list), Some(map)) if !list.is_empty() && !map.is_empty() => {
                return Err(field("archMap", "architectures is given, too"));
            }
            (Some(list), _) if !list.is_empty() => list.clone(),
            (_, Some(map)) => map
                .iter()
                .find(|entry| entry.architecture == machine.architecture)
                .map(|entry| {
                    let below = entry.sub_architectures.as_deref().unwrap_or_default();
                    [&[entry.architecture], below].concat()
                })
                .unwrap_or_default(),
            _ => Vec::new(),
        };
        let mut syscalls = Vec::new();
        for (index, rule) in self.syscalls.iter().flatten().enumerate() {
            let at = format!("syscalls[{index}]");
            if let Some(syscall) = rule.resolve(&at, bounding, machine)? {
                syscalls.push(syscall);
            }
        }
        let mut profile = LinuxSeccompBuilder::default()
            .default_action(self.default_action)
            .architectures(architectures)
            .syscalls(syscalls)
            .build()
            .map_err(|error| field("", &error.to_string()))?;
        profile.set_default_errno_ret(self.default_errno_ret).set_flags(self.flags.clone());
        Ok(profile)
    }
}

impl Rule {
    /// `None` where its conditions do not hold.
    fn resolve(
        &self,
        at: &str,
        bounding: &Capabilities,
        machine: &Machine,
    ) -> Result<Option<LinuxSyscall>, ProfileError> {
        let names = match (&self.name, self.names.as_deref().unwrap_or_default()) {
            (Some(_), [_, ..]) => return Err(field(&format!("{at}.name"), "names is given, too")),
            (Some(name), []) => vec![name.clone()],
            (None, names) => names.to_vec(),
        };
        let includes = self.includes.clone().unwrap_or_default();
        let excludes = self.excludes.clone().unwrap_or_default();
        let newer = |conditions: &Conditions, which: &str| match conditions.min_kernel.as_deref() {
            None | Some("") => Ok(None),
            Some(text) => match version(text) {
                Some(least) => Ok(Some(machine.kernel >= least)),
                None => Err(field(&format!("{at}.{which}.minKernel"), &format!("{text:?} is not a version"))),
            },
        };
        let here = |arches: &[String]| arches.iter().any(|name| name == machine.go_name);
        let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let included = list(&includes.caps).iter().all(|name| has(bounding, name))
            && (list(&includes.arches).is_empty() || here(&list(&includes.arches)))
            && newer(&includes, "includes")? != Some(false);
        let excluded = list(&excludes.caps).iter().any(|name| has(bounding, name))
            || here(&list(&excludes.arches))
            || newer(&excludes, "excludes")? == Some(true);
        if !included || excluded {
            return Ok(None);
        }
        let mut syscall = LinuxSyscallBuilder::default()
            .names(names)
            .action(self.action)
            .build()
            .map_err(|error| field(at, &error.to_string()))?;
        let args = self.args.clone().filter(|args| !args.is_empty());
        syscall.set_errno_ret(self.errno_ret).set_args(args);
        Ok(Some(syscall))
    }
}

/// Whether a capability, as `CAP_SYS_ADMIN`, is in a set.
fn has(set: &Capabilities, name: &str) -> bool {
    let bare = name.strip_prefix("CAP_").unwrap_or(name);
    set.iter().any(|one| one.to_string() == bare)
}

pub(super) fn field(field: &str, reason: &str) -> ProfileError {
    ProfileError::Field { field: field.to_owned(), reason: reason.to_owned() }
}
