//! Sysctls that belong to a namespace: the grammar of their names, which namespace each is part of, and writing them.
//!
//! A sysctl outside the namespaces in question would change the host, so only names on the lists below are ever
//! written (CVE-2022-0811 wrote `kernel.core_pattern` through a safe-looking name, CVE-2022-0532 wrote a safe one to
//! the host). It must not know who asked for a value, or whether a policy allows it.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;

/// Longest value that is written, bytes: proc handlers take one page at most.
const VALUE_MAX: usize = 4095;

/// The System V and POSIX IPC settings that ipc_namespaces(7) lists, as of Linux 6.18 `ipc/ipc_sysctl.c`.
const IPC: [&str; 12] = [
    "kernel/shmmax",
    "kernel/shmall",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
    "kernel/shm_next_id",
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/msg_next_id",
    "kernel/auto_msgmni",
    "kernel/sem",
    "kernel/sem_next_id",
];

/// The namespace in which a sysctl has its own value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// `net.*`
    Net,
    /// `kernel.shm*`, `kernel.msg*`, `kernel.sem*`, `fs.mqueue.*`
    Ipc,
    /// `kernel.domainname`; the host name is set with sethostname(2), not here
    Uts,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Net => "network",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
        })
    }
}

/// Why a sysctl was not written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// The name does not follow the grammar.
    #[error("sysctl name {name:?}: {reason}")]
    Name {
        /// The name as given.
        name: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// The setting is not part of a network, IPC or UTS namespace, so that writing it would change the host.
    #[error("sysctl {name}: not part of a network, ipc or uts namespace")]
    NotNamespaced {
        /// The name as given.
        name: String,
    },
    /// The value cannot be one.
    #[error("value {value:?} of sysctl {name}: {reason}")]
    Value {
        /// The name as given.
        name: String,
        /// The value as given.
        value: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// The kernel did not take it: ENOENT is a name that does not exist (in this namespace), EINVAL a value out of
    /// range.
    #[error("write {value:?} to sysctl {name}")]
    Write {
        /// The name as given.
        name: String,
        /// The value as given.
        value: String,
        /// What open(2) or write(2) returned.
        #[source]
        source: io::Error,
    },
}

/// A checked name of a namespaced sysctl.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// As given, for messages.
    name: String,
    /// Path below `/proc/sys`.
    path: String,
    owner: Owner,
}

impl Sysctl {
    /// Reads a name in either spelling of sysctl(8): when the first separator is a dot, dots separate and a slash
    /// stands for a dot inside a part (`net.ipv4.conf.eth0/100.rp_filter`); when it is a slash, slashes separate.
    ///
    /// # Errors
    /// [`SysctlError::Name`] for a malformed name, [`SysctlError::NotNamespaced`] for one that would change the host.
    pub fn parse(name: &str) -> Result<Self, SysctlError> {
        let malformed = |reason| SysctlError::Name { name: name.to_owned(), reason };
        if name.len() > 256 {
            return Err(malformed("longer than 256 bytes"));
        }
        let path: String = match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
            None => return Err(malformed("has no dot or slash")),
            Some(b'/') => name.to_owned(),
            Some(_) => name
                .chars()
                .map(|c| {
                    if c == '.' {
                        '/'
                    } else if c == '/' {
                        '.'
                    } else {
                        c
                    }
                })
                .collect(),
        };
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(malformed("has an empty, \".\" or \"..\" part"));
        }
        if !path.chars().all(|c| c.is_ascii_graphic()) {
            return Err(malformed("has a character that is not printable ASCII"));
        }
        let owner = owner(&path).ok_or_else(|| SysctlError::NotNamespaced { name: name.to_owned() })?;
        Ok(Self { name: name.to_owned(), path, owner })
    }

    /// The namespace that holds the value.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Whether the setting belongs to one network interface other than `lo`, and so does not exist before that
    /// interface does (`net.ipv4.conf.eth0.rp_filter`).
    pub fn waits_for_link(&self) -> bool {
        let mut parts = self.path.split('/');
        let (net, family, table) = (parts.next(), parts.next(), parts.next());
        let per_link = net == Some("net")
            && matches!(family, Some("ipv4" | "ipv6" | "mpls"))
            && matches!(table, Some("conf" | "neigh"));
        per_link && !matches!(parts.next(), Some("all" | "default" | "lo"))
    }

    /// Whether it may matter that the setting is written before the first interface is made: `default` is what an
    /// interface begins with (`net.ipv4.conf.default.rp_filter`), and others decide which addresses it can get. Of
    /// settings that are not known here it is assumed.
    pub fn precedes_links(&self) -> bool {
        const HARMLESS: [&str; 4] = [
            "net/core/somaxconn",
            "net/ipv4/ping_group_range",
            "net/ipv4/ip_unprivileged_port_start",
            "net/ipv4/tcp_syncookies",
        ];
        const HARMLESS_BEGINNINGS: [&str; 4] = [
            "net/ipv4/ip_local_",
            "net/ipv4/tcp_keepalive_",
            "net/ipv4/tcp_fin_timeout",
            "net/ipv4/tcp_tw_reuse",
        ];
        let path = self.path.as_str();
        let harmless = HARMLESS.contains(&path) || HARMLESS_BEGINNINGS.iter().any(|b| path.starts_with(b));
        self.owner == Owner::Net && !harmless
    }

    /// Writes `value`, with one write(2), in the namespaces of the calling thread: `/proc/sys` resolves `net`, `kernel`
    /// and `fs/mqueue` entries for the thread that opens them.
    ///
    /// # Errors
    /// [`SysctlError::Value`] and [`SysctlError::Write`].
    pub fn write(&self, value: &str) -> Result<(), SysctlError> {
        let bad = |reason| SysctlError::Value { name: self.name.clone(), value: value.to_owned(), reason };
        if value.len() > VALUE_MAX {
            return Err(bad("longer than 4095 bytes"));
        }
        // A newline would end the value for the kernel and hide the rest of it from whoever checks it.
        if value.chars().any(|c| c.is_control() && c != '\t') {
            return Err(bad("has a control character"));
        }
        write_once(&self.absolute(), value).map_err(|source| SysctlError::Write {
            name: self.name.clone(),
            value: value.to_owned(),
            source,
        })
    }

    fn absolute(&self) -> PathBuf {
        PathBuf::from("/proc/sys").join(&self.path)
    }
}

fn owner(path: &str) -> Option<Owner> {
    if path.starts_with("net/") {
        Some(Owner::Net)
    } else if path.starts_with("fs/mqueue/") || IPC.contains(&path) {
        Some(Owner::Ipc)
    } else if path == "kernel/domainname" {
        Some(Owner::Uts)
    } else {
        None
    }
}

/// One open, one write: a proc handler takes each write for a value of its own.
fn write_once(path: &std::path::Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    match file.write(value.as_bytes())? {
        written if written == value.len() => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::WriteZero, "the kernel took a part of the value")),
    }
}

/// Settings of the host that a new network or UTS namespace begins with a copy of (`devinet_init_net`, `tcp_sk_init` and
/// `clone_uts_ns` of Linux): held open, because they are read often.
#[derive(Debug)]
pub struct Inherited(Vec<std::fs::File>);

impl Inherited {
    /// Opens the files, in the namespaces of the calling thread; one that this kernel has not is left out.
    ///
    /// # Errors
    /// The folders of the interfaces' settings cannot be listed.
    pub fn open() -> io::Result<Self> {
        const SINGLE: [&str; 6] = [
            "kernel/domainname",
            "net/core/devconf_inherit_init_net",
            "net/ipv4/tcp_congestion_control",
            "net/ipv4/tcp_rmem",
            "net/ipv4/tcp_wmem",
            "net/ipv4/tcp_child_ehash_entries",
        ];
        let root = std::path::Path::new("/proc/sys");
        let mut paths: Vec<PathBuf> = SINGLE.iter().map(|path| root.join(path)).collect();
        let mut folders = vec!["net/ipv4/conf/all", "net/ipv4/conf/default"];
        // Those of IPv6 are copied only where the host says so.
        if std::fs::read_to_string(root.join(SINGLE[1])).is_ok_and(|value| value.trim() != "0") {
            folders.extend(["net/ipv6/conf/all", "net/ipv6/conf/default"]);
        }
        for folder in folders {
            for entry in std::fs::read_dir(root.join(folder))? {
                paths.push(entry?.path());
            }
        }
        Ok(Self(paths.iter().filter_map(|path| std::fs::File::open(path).ok()).collect()))
    }

    /// All values, one after the other: the same bytes as long as none is changed. A file that cannot be read (some only
    /// take values) counts as empty.
    pub fn values(&self) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let mut values = Vec::with_capacity(self.0.len() * 4);
        let mut value = [0; 256];
        for file in &self.0 {
            let length = file.read_at(&mut value, 0).unwrap_or_default();
            values.extend_from_slice(&value[..length]);
            values.push(0);
        }
        values
    }
}

/// Makes the host's `/proc/sys/<path>` hold `value`. A file that holds it already is not written, so that a read-only
/// `/proc/sys` with the right values is good enough.
pub(crate) fn set_on_host(path: &str, value: &str) -> Result<(), SysctlError> {
    let file = PathBuf::from("/proc/sys").join(path);
    let written = match std::fs::read_to_string(&file) {
        Ok(present) if present.trim_end() == value => Ok(()),
        Ok(_) => write_once(&file, value),
        Err(error) => Err(error),
    };
    written.map_err(|source| SysctlError::Write {
        name: path.replace('/', "."),
        value: value.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_name_the_same_setting() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
            ("net.ipv4.conf.eth0/100.rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
            ("net/ipv4/conf/eth0.100/rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
        ] {
            assert_eq!(Sysctl::parse(name).unwrap().path, path);
        }
    }

    #[test]
    fn each_setting_belongs_to_its_namespace() {
        for (name, owner) in [
            ("net.core.somaxconn", Owner::Net),
            ("kernel.shm_rmid_forced", Owner::Ipc),
            ("kernel.sem", Owner::Ipc),
            ("fs.mqueue.msg_max", Owner::Ipc),
            ("kernel.domainname", Owner::Uts),
        ] {
            assert_eq!(Sysctl::parse(name).unwrap().owner(), owner, "{name}");
        }
    }

    #[test]
    fn settings_of_the_host_are_refused() {
        for name in ["kernel.core_pattern", "vm.swappiness", "kernel.hostname", "fs.file-max", "kernel.shmx"]
        {
            assert!(matches!(Sysctl::parse(name), Err(SysctlError::NotNamespaced { .. })), "{name}");
        }
    }

    #[test]
    fn names_that_leave_their_folder_are_refused() {
        for name in [
            "kernel.shm_rmid_forced/../core_pattern",
            "net/../kernel/core_pattern",
            "net.ipv4.conf.eth0/../..",
            "net.//.x",
            "/net/ipv4/ip_forward",
            "net..x",
            "net",
            "",
            "net.a b",
            "net.a\nb",
            "net.\u{e4}",
        ] {
            assert!(matches!(Sysctl::parse(name), Err(SysctlError::Name { .. })), "{name:?}");
        }
    }

    #[test]
    fn settings_of_one_interface_are_known() {
        for (name, waits) in [
            ("net.ipv4.conf.eth0.rp_filter", true),
            ("net.ipv6.neigh.eth0.gc_stale_time", true),
            ("net.ipv4.conf.all.rp_filter", false),
            ("net.ipv6.conf.lo.disable_ipv6", false),
            ("net.ipv4.ip_forward", false),
            ("kernel.sem", false),
        ] {
            assert_eq!(Sysctl::parse(name).unwrap().waits_for_link(), waits, "{name}");
        }
    }

    #[test]
    fn settings_that_interfaces_begin_with_are_known() {
        for (name, precedes) in [
            ("net.ipv4.conf.default.rp_filter", true),
            ("net.ipv6.conf.all.disable_ipv6", true),
            ("net.ipv4.ip_forward", true),
            ("net.unheard.of", true),
            ("net.ipv4.ip_local_port_range", false),
            ("net.ipv4.ping_group_range", false),
            ("kernel.sem", false),
        ] {
            assert_eq!(Sysctl::parse(name).unwrap().precedes_links(), precedes, "{name}");
        }
    }

    #[test]
    fn a_value_with_a_second_line_is_refused() {
        let sysctl = Sysctl::parse("net.ipv4.ip_forward").unwrap();
        for value in ["1\n0", "1\0"] {
            assert!(matches!(sysctl.write(value), Err(SysctlError::Value { .. })));
        }
    }
}
