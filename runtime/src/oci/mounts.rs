//! `mounts` of a spec: types and options.
//!
//! Options follow mount(8) and the OCI runtime spec's list; a later one wins over an earlier one. One that is not
//! known is an error, because the wrong guess could be a hole.
//!
//! Must not know: which mounts a container needs.

use crate::error::PlanError;
use crate::mounts::{IdMap, Source};
use crate::plan::{Attach, Kind, NewMount};
use crisp_sys::mount::{MountAttr, Propagation};
use oci_spec::runtime::Mount;

/// File systems that can be made anew, and the options of their own that they take.
const FILE_SYSTEMS: [(&str, &[&str]); 6] = [
    ("proc", &["hidepid", "subset", "gid"]),
    ("sysfs", &[]),
    (
        "tmpfs",
        &[
            "size",
            "mode",
            "uid",
            "gid",
            "nr_inodes",
            "nr_blocks",
            "huge",
            "mpol",
            "inode32",
            "inode64",
            "noswap",
        ],
    ),
    ("devpts", &["newinstance", "ptmxmode", "mode", "uid", "gid", "max"]),
    ("mqueue", &[]),
    (
        "cgroup2",
        &[
            "nsdelegate",
            "memory_recursiveprot",
            "memory_localevents",
            "memory_hugetlb_accounting",
            "pids_localevents",
        ],
    ),
];

/// Files of procfs that may be covered by a bind mount (LXCFS does that, and old tests of CRIU).
const COVERABLE: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/sys/kernel/ns_last_pid",
];

/// Whether a mount binds something that exists, as opposed to making a new file system.
pub(super) fn is_bind(mount: &Mount) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    mount.typ().as_deref() == Some("bind")
        || options.iter().any(|option| option == "bind" || option == "rbind")
}

/// Appends the operations for all mounts, in their order, and the sources they need.
pub(super) fn plan(
    mounts: &[Mount],
    kinds: &mut Vec<Kind>,
    sources: &mut Vec<Source>,
) -> Result<(), PlanError> {
    for mount in mounts {
        let target = super::text("mounts.destination", mount.destination())?;
        let field = format!("mounts[{target}]");
        let bind = is_bind(mount);
        let fstype = if bind { None } else { Some(fstype(mount, &field)?) };
        let options = parse(mount.options().as_deref().unwrap_or_default(), fstype, &field)?;
        kinds.push(match fstype {
            None => {
                let source = source(mount, &target, &field)?;
                let idmap = idmap(mount, &options, &field)?;
                sources.push(Source {
                    path: source,
                    recursive: options.rbind,
                    target: target.clone(),
                    idmap,
                });
                Kind::Attach(attach(target, sources.len() as u32, &options))
            }
            Some(_) if has_mappings(mount) || options.idmap.is_some() => {
                return Err(PlanError::unsupported(format!("{field}.uidMappings"), "of a new mount"));
            }
            Some(fstype) => Kind::Mount(new_mount(mount, target, fstype, options, &field)?),
        });
    }
    Ok(())
}

fn has_mappings(mount: &Mount) -> bool {
    [mount.uid_mappings(), mount.gid_mappings()].into_iter().flatten().any(|list| !list.is_empty())
}

/// The id mapping of a bind mount; without the option `ridmap` the mounts below it are left as they are.
fn idmap(mount: &Mount, options: &Options, field: &str) -> Result<Option<IdMap>, PlanError> {
    if !has_mappings(mount) {
        return match options.idmap {
            None => Ok(None),
            Some(_) => Err(PlanError::invalid(
                format!("{field}.options"),
                "idmap without uidMappings and gidMappings",
            )),
        };
    }
    let list = |list: &'_ Option<Vec<_>>| list.clone().unwrap_or_default();
    let mappings = super::user::checked(field, &list(mount.uid_mappings()), &list(mount.gid_mappings()))?;
    Ok(Some(IdMap { mappings, recursive: options.idmap == Some(true) }))
}

fn fstype(mount: &Mount, field: &str) -> Result<&'static str, PlanError> {
    let asked = mount.typ().as_deref().unwrap_or_default();
    // A spec written for cgroup v1 says "cgroup"; there is only one hierarchy here.
    let name = if asked == "cgroup" { "cgroup2" } else { asked };
    FILE_SYSTEMS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(known, _)| *known)
        .ok_or_else(|| PlanError::unsupported(format!("{field}.type"), format!("{asked:?}")))
}

fn source(mount: &Mount, target: &str, field: &str) -> Result<std::path::PathBuf, PlanError> {
    let path =
        mount.source().as_ref().ok_or_else(|| PlanError::invalid(format!("{field}.source"), "missing"))?;
    let text = super::text(&format!("{field}.source"), path)?;
    if hides_proc(target, &text) {
        return Err(PlanError::invalid(field, "a bind mount over /proc"));
    }
    Ok(path.clone())
}

/// Whether a bind of `source` to `target` hides what the kernel says in procfs. It could feed the container's own tools
/// false data about the kernel (CVE-2019-16884); a few files may be covered, and the host's whole procfs on /proc is
/// what a container in the host's PID namespace may ask for.
#[must_use]
pub fn hides_proc(target: &str, source: &str) -> bool {
    let clean = target.trim_end_matches('/');
    let over_proc = clean == "/proc" || clean.starts_with("/proc/");
    over_proc && !COVERABLE.contains(&clean) && !(clean == "/proc" && source == "/proc")
}

/// Options, sorted by what they mean.
#[derive(Debug, Default)]
struct Options {
    attributes: MountAttr,
    /// The access time was chosen: one of the three values, or 0 for relatime.
    atime: Option<MountAttr>,
    recursive_attributes: MountAttr,
    propagation: Option<(Propagation, bool)>,
    rbind: bool,
    /// `idmap`, or (true) `ridmap`.
    idmap: Option<bool>,
    own: Vec<String>,
}

fn parse(list: &[String], fstype: Option<&str>, field: &str) -> Result<Options, PlanError> {
    let mut options = Options::default();
    for option in list {
        let unknown = || PlanError::unsupported(format!("{field}.options"), format!("{option:?}"));
        if generic(option, &mut options) {
            continue;
        }
        match (option.as_str(), fstype) {
            ("bind", None) => {}
            ("rbind", None) => options.rbind = true,
            ("idmap", None) => options.idmap = Some(false),
            ("ridmap", None) => options.idmap = Some(true),
            (_, Some(fstype)) if is_own(option, fstype) => options.own.push(option.clone()),
            _ => return Err(unknown()),
        }
    }
    // Recursive properties and propagation are about trees; a new file system is a single mount.
    if fstype.is_some() {
        if !options.recursive_attributes.is_empty() {
            return Err(PlanError::unsupported(
                format!("{field}.options"),
                "rro and its like on a new mount",
            ));
        }
        if options.propagation.is_some_and(|(kind, _)| kind != Propagation::Private) {
            return Err(PlanError::unsupported(format!("{field}.options"), "propagation of a new mount"));
        }
    }
    Ok(options)
}

/// Options that every mount takes; `false`: it is none of them.
fn generic(option: &str, options: &mut Options) -> bool {
    let (attribute, on) = match option {
        "ro" => (MountAttr::RDONLY, true),
        // For a bind this leaves the source as it is: what is read-only on the host stays so.
        "rw" => (MountAttr::RDONLY, false),
        "nosuid" => (MountAttr::NOSUID, true),
        "suid" => (MountAttr::NOSUID, false),
        "nodev" => (MountAttr::NODEV, true),
        "dev" => (MountAttr::NODEV, false),
        "noexec" => (MountAttr::NOEXEC, true),
        "exec" => (MountAttr::NOEXEC, false),
        "nodiratime" => (MountAttr::NODIRATIME, true),
        "diratime" => (MountAttr::NODIRATIME, false),
        "nosymfollow" => (MountAttr::NOSYMFOLLOW, true),
        "symfollow" => (MountAttr::NOSYMFOLLOW, false),
        "defaults" => (MountAttr::empty(), true),
        other => return special(other, options),
    };
    options.attributes.set(attribute, on);
    true
}

fn special(option: &str, options: &mut Options) -> bool {
    let propagation = |kind, recursive| Some((kind, recursive));
    match option {
        "rro" => options.recursive_attributes |= MountAttr::RDONLY,
        "rnosuid" => options.recursive_attributes |= MountAttr::NOSUID,
        "rnodev" => options.recursive_attributes |= MountAttr::NODEV,
        "rnoexec" => options.recursive_attributes |= MountAttr::NOEXEC,
        "noatime" => options.atime = Some(MountAttr::NOATIME),
        "strictatime" => options.atime = Some(MountAttr::STRICTATIME),
        "relatime" | "atime" | "nostrictatime" => options.atime = Some(MountAttr::empty()),
        "private" => options.propagation = propagation(Propagation::Private, false),
        "rprivate" => options.propagation = propagation(Propagation::Private, true),
        "slave" => options.propagation = propagation(Propagation::Slave, false),
        "rslave" => options.propagation = propagation(Propagation::Slave, true),
        "shared" => options.propagation = propagation(Propagation::Shared, false),
        "rshared" => options.propagation = propagation(Propagation::Shared, true),
        _ => return false,
    }
    true
}

fn is_own(option: &str, fstype: &str) -> bool {
    let key = option.split_once('=').map_or(option, |(key, _)| key);
    FILE_SYSTEMS.iter().any(|(known, own)| *known == fstype && own.contains(&key))
}

fn attach(target: String, fd: u32, options: &Options) -> Attach {
    let (set, clear) = match options.atime {
        Some(value) => (options.attributes | value, MountAttr::ATIME),
        None => (options.attributes, MountAttr::empty()),
    };
    let (propagation, propagation_recursive) =
        options.propagation.map_or((0, false), |(kind, recursive)| (kind.bits(), recursive));
    Attach {
        fd,
        target,
        // Known when the source is opened.
        directory: false,
        set: set.bits(),
        clear: clear.bits(),
        recursive: false,
        propagation,
        propagation_recursive,
        set_recursive: options.recursive_attributes.bits(),
    }
}

fn new_mount(
    mount: &Mount,
    target: String,
    fstype: &str,
    options: Options,
    field: &str,
) -> Result<NewMount, PlanError> {
    let mut own = options.own;
    // Shown as the device in /proc/mounts; without it that says "none".
    let source = mount.source().as_ref().map_or(Ok(fstype), |source| {
        source.to_str().ok_or_else(|| PlanError::invalid(format!("{field}.source"), "not UTF-8"))
    })?;
    own.insert(0, format!("source={source}"));
    if let Some(long) = own.iter().find(|option| option.len() > 255) {
        let reason = format!("{} bytes are more than the kernel takes", long.len());
        return Err(PlanError::invalid(format!("{field}.options"), reason));
    }
    let attributes = options.attributes | options.atime.unwrap_or_default();
    Ok(NewMount { target, fstype: fstype.to_owned(), options: own, attributes: attributes.bits() })
}
