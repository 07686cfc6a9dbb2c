//! A line of /proc/self/mountinfo -> where the mount is, and what it is as far as two containers can share that.
//!
//! Must not know: which mounts a container has.

use anyhow::{Context, Result};

/// File systems whose own options are the container's business. Of others, those options and the device say where the
/// runtime keeps its files.
const VIRTUAL: &[&str] = &["cgroup2", "devpts", "mqueue", "proc", "sysfs", "tmpfs", "devtmpfs"];
/// File systems with the same names in every container, so that the part that is mounted has one to show.
const FIXED: &[&str] = &["cgroup2", "devpts", "proc", "sysfs"];

/// Returns the place and the description of a mount.
pub(super) fn reduce(line: &str) -> Result<(String, String)> {
    let parts = || -> Option<(Vec<&str>, Vec<&str>)> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let (mount, filesystem) =
            (mount.split(' ').collect::<Vec<_>>(), filesystem.split(' ').collect::<Vec<_>>());
        (mount.len() >= 6 && filesystem.len() == 3).then_some((mount, filesystem))
    };
    let (mount, filesystem) = parts().with_context(|| format!("not a line of mountinfo: {line}"))?;
    let (root, place, options) = (mount[3], mount[4], mount[5]);
    let (kind, source, own) = (filesystem[0], filesystem[1], filesystem[2]);
    let propagation: Vec<_> = mount[6..].iter().filter_map(|tag| tag.split(':').next()).collect();
    let whole = root == "/" || FIXED.contains(&kind);
    let mut text = format!("{kind} {options}");
    if root != "/" {
        text.push_str(&format!(", {}", if whole { root } else { "part" }));
    }
    if !propagation.is_empty() {
        text.push_str(&format!(", {}", propagation.join(" ")));
    }
    if VIRTUAL.contains(&kind) && whole {
        text.push_str(&format!(", {source} {own}"));
    } else {
        // Of an overlay the source is a word that `df` shows.
        let source = if kind == "overlay" { source } else { "device" };
        let access = if own.split(',').any(|option| option == "ro") { "ro" } else { "rw" };
        text.push_str(&format!(", {source} {access}"));
    }
    Ok((place.to_owned(), text))
}

#[cfg(test)]
mod tests {
    use super::reduce;

    #[test]
    fn ids_and_places_of_the_runtime_are_left_out_and_flags_are_kept() {
        let overlay = "611 540 0:55 / / ro,relatime master:7 - overlay overlay rw,lowerdir=/x,upperdir=/y";
        assert_eq!(reduce(overlay).unwrap(), ("/".into(), "overlay ro,relatime, master, overlay rw".into()));
        let file = "7 6 8:1 /run/pods/1/hosts /etc/hosts rw,nosuid - ext4 /dev/vda rw,discard";
        assert_eq!(reduce(file).unwrap(), ("/etc/hosts".into(), "ext4 rw,nosuid, part, device rw".into()));
        let proc = "7 6 0:9 /bus /proc/bus ro,nosuid shared:3 master:4 - proc proc rw";
        let expected = "proc ro,nosuid, /bus, shared master, proc rw";
        assert_eq!(reduce(proc).unwrap(), ("/proc/bus".into(), expected.into()));
        let null = "7 6 0:9 /null /proc/keys ro master:4 - tmpfs none rw,size=4k";
        assert_eq!(reduce(null).unwrap(), ("/proc/keys".into(), "tmpfs ro, part, master, device rw".into()));
        assert!(reduce("7 6 0:9 /bus").is_err());
    }
}
