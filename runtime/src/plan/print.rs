//! A plan for human eyes: error texts name an operation with these words, golden tests compare whole plans.
//!
//! Must not know: how operations are executed.

use super::{Capabilities, Kind, Plan, Process, Rlimit};
use std::fmt::{Display, Formatter, Result};

/// Names of the `MOUNT_ATTR_*` bits; the access time values are told apart below.
const ATTRIBUTES: [(u64, &str); 6] = [
    (libc::MOUNT_ATTR_RDONLY, "ro"),
    (libc::MOUNT_ATTR_NOSUID, "nosuid"),
    (libc::MOUNT_ATTR_NODEV, "nodev"),
    (libc::MOUNT_ATTR_NOEXEC, "noexec"),
    (libc::MOUNT_ATTR_NODIRATIME, "nodiratime"),
    (libc::MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow"),
];

fn attributes(bits: u64) -> String {
    let mut names: Vec<String> =
        ATTRIBUTES.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| (*name).to_owned()).collect();
    match bits & libc::MOUNT_ATTR__ATIME {
        0 => {}
        libc::MOUNT_ATTR_NOATIME => names.push("noatime".to_owned()),
        libc::MOUNT_ATTR_STRICTATIME => names.push("strictatime".to_owned()),
        _ => names.push("atime".to_owned()),
    }
    let known = ATTRIBUTES.iter().fold(libc::MOUNT_ATTR__ATIME, |known, (bit, _)| known | bit);
    if bits & !known != 0 {
        names.push(format!("{:#x}", bits & !known));
    }
    names.join(",")
}

fn propagation(bits: u64) -> String {
    match bits {
        0 => "unchanged".to_owned(),
        libc::MS_PRIVATE => "private".to_owned(),
        libc::MS_SLAVE => "slave".to_owned(),
        libc::MS_SHARED => "shared".to_owned(),
        other => format!("{other:#x}"),
    }
}

/// The operation with its object, short: `mount /proc (proc)`.
impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Root(root) => write!(f, "attach the root at {}", root.staging),
            Self::Mount(new) => write!(f, "mount {} ({})", new.target, new.fstype),
            Self::Attach(attach) => write!(f, "mount {} (bind)", attach.target),
            Self::Device(device) => write!(f, "create device {}", device.path),
            Self::Symlink(link) => write!(f, "create link {}", link.path),
            Self::Mask(path) => write!(f, "mask {}", path.path),
            Self::Readonly(path) => write!(f, "make {} read-only", path.path),
            Self::Directory(directory) => write!(f, "create directory {}", directory.path),
            Self::Pivot(_) => write!(f, "pivot into the root"),
            Self::Console(path) => write!(f, "open a terminal and mount it at {}", path.path),
        }
    }
}

/// The whole plan, one line an operation, everything that is in it.
impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let own = if self.cgroup_namespace { ", own cgroup namespace" } else { "" };
        write!(f, "plan: {} descriptors{own}", self.fds)?;
        match self.user {
            None => writeln!(f)?,
            Some(user) => writeln!(f, ", user namespace fd {}, outside user {}", user.fd, user.host_uid)?,
        }
        for op in &self.ops {
            match &op.kind {
                Some(kind) => writeln!(f, "  {kind}{}", details(kind))?,
                None => writeln!(f, "  (unknown)")?,
            }
        }
        match &self.process {
            Some(process) => write!(f, "{process}"),
            None => writeln!(f, "process: none"),
        }
    }
}

fn details(kind: &Kind) -> String {
    match kind {
        Kind::Root(root) => format!(": {}", propagation(root.propagation)),
        Kind::Mount(new) => format!(": {} [{}]", attributes(new.attributes), new.options.join(",")),
        Kind::Attach(attach) => {
            let kind = if attach.directory { "directory" } else { "file" };
            let below = |recursive: bool| if recursive { " and below" } else { "" };
            let tree = match attach.set_recursive {
                0 => String::new(),
                set => format!(" set below, too [{}]", attributes(set)),
            };
            format!(
                ": fd {} ({kind}), set [{}] clear [{}]{}{tree}, {}{}",
                attach.fd,
                attributes(attach.set),
                attributes(attach.clear),
                below(attach.recursive),
                propagation(attach.propagation),
                below(attach.propagation_recursive),
            )
        }
        Kind::Device(device) => {
            let kind = match device.mode & libc::S_IFMT {
                libc::S_IFCHR => 'c',
                libc::S_IFBLK => 'b',
                _ => 'p',
            };
            let (mode, uid, gid) = (device.mode & 0o7777, device.uid, device.gid);
            let node = if device.node == 0 { String::new() } else { format!(", node {}", device.node) };
            format!(": {kind} {}:{} {mode:04o} {uid}:{gid}{node}", device.major, device.minor)
        }
        Kind::Symlink(link) => format!(" -> {}", link.target),
        Kind::Directory(directory) => format!(": {:04o}", directory.mode),
        Kind::Pivot(pivot) if pivot.readonly => ", read-only".to_owned(),
        Kind::Mask(_) | Kind::Readonly(_) | Kind::Console(_) | Kind::Pivot(_) => String::new(),
    }
}

impl Display for Process {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let words = |list: &[Vec<u8>]| {
            list.iter()
                .map(|word| format!("{:?}", String::from_utf8_lossy(word)))
                .collect::<Vec<_>>()
                .join(" ")
        };
        writeln!(f, "process: {}", words(&self.args))?;
        writeln!(f, "  env: {}", words(&self.env))?;
        let terminal = if self.terminal { ", terminal" } else { "" };
        writeln!(f, "  cwd: {}, umask {:04o}{terminal}", self.cwd, self.umask)?;
        writeln!(f, "  user: {}:{} groups {:?}", self.uid, self.gid, self.groups)?;
        match &self.capabilities {
            Some(caps) => writeln!(f, "  capabilities: {caps}")?,
            None => writeln!(f, "  capabilities: none")?,
        }
        let score = self.oom_score_adj.map_or_else(|| "inherited".to_owned(), |score| score.to_string());
        writeln!(f, "  no_new_privs: {}, oom_score_adj: {score}", self.no_new_privs)?;
        if !self.seccomp.is_empty() {
            let instructions = self.seccomp.len() / size_of::<libc::sock_filter>();
            writeln!(f, "  seccomp: {instructions} instructions, flags {:#x}", self.seccomp_flags)?;
        }
        if !self.apparmor.is_empty() {
            writeln!(f, "  apparmor: {}", self.apparmor)?;
        }
        for Rlimit { resource, soft, hard } in &self.rlimits {
            writeln!(f, "  rlimit {resource}: {soft}:{hard}")?;
        }
        Ok(())
    }
}

impl Display for Capabilities {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(
            f,
            "bounding {:#x} effective {:#x} permitted {:#x} inheritable {:#x} ambient {:#x}",
            self.bounding, self.effective, self.permitted, self.inheritable, self.ambient
        )
    }
}
