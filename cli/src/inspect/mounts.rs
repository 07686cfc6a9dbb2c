//! What is mounted in a container. Two containers share a mount's content if device and root within it are the same.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result};
use crisp_proto::runtime::v1 as cri;
use serde::Serialize;

/// A mount in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Mount {
    /// Path in the container.
    pub(super) target: String,
    /// Path on the host when the pod asked for the mount, else what kind of file system it is.
    pub(super) source: String,
    /// Device and root within it: the same for the same content.
    pub(super) content: String,
    pub(super) read_only: bool,
    /// The pod asked for it; else the runtime added it.
    pub(super) asked: bool,
}

/// A content, with who sees it where.
#[derive(Debug)]
pub(super) struct Content<'a> {
    /// As the first that sees it has it.
    pub(super) source: &'a str,
    /// Index of a container and its mount, in the order of the containers; one may see it at several places.
    pub(super) seen: Vec<(usize, &'a Mount)>,
}

impl<'a> Content<'a> {
    /// The mounts of one container.
    pub(super) fn of(&self, container: usize) -> impl Iterator<Item = &'a Mount> {
        self.seen.iter().filter(move |(index, _)| *index == container).map(|(_, mount)| *mount)
    }

    /// How many containers see it.
    pub(super) fn containers(&self) -> usize {
        self.seen.iter().map(|(index, _)| index).collect::<BTreeSet<_>>().len()
    }
}

/// Each content once: the containers' roots first, then in the order in which the first container has them.
pub(super) fn contents<'a>(of_each: impl Iterator<Item = &'a [Mount]>) -> Vec<Content<'a>> {
    let mut contents: Vec<(&str, Content<'_>)> = Vec::new();
    for (index, mount) in of_each.enumerate().flat_map(|(index, all)| all.iter().map(move |one| (index, one)))
    {
        match contents.iter_mut().find(|(id, _)| *id == mount.content) {
            Some((_, content)) => content.seen.push((index, mount)),
            None => {
                let content = Content { source: &mount.source, seen: vec![(index, mount)] };
                contents.push((&mount.content, content));
            }
        }
    }
    contents.sort_by_key(|(_, content)| !content.seen.iter().any(|(_, mount)| mount.target == "/"));
    contents.into_iter().map(|(_, content)| content).collect()
}

/// Below these there are only the usual kernel file systems and masks.
const USUAL: [&str; 3] = ["/proc", "/sys", "/dev"];
/// What is worth a look there.
const UNUSUAL: [&str; 2] = ["/dev/shm", "/dev/mqueue"];

/// The mounts of a process that tell something: its root, what the pod asked for, and what the runtime added outside
/// of the kernel's own file systems.
///
/// # Errors
/// The process is gone, or this user may not look at it.
pub(super) fn of(pid: u32, asked: &[cri::Mount]) -> Result<Vec<Mount>> {
    let path = format!("/proc/{pid}/mountinfo");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    Ok(read(&text, asked))
}

fn read(mountinfo: &str, asked: &[cri::Mount]) -> Vec<Mount> {
    mountinfo.lines().filter_map(|line| entry(line, asked)).collect()
}

/// A line: `id parent major:minor root target options [tags] - type source super-options` (proc_pid_mountinfo(5)).
fn entry(line: &str, asked: &[cri::Mount]) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let fields: Vec<&str> = before.split(' ').collect();
    let [_, _, device, root, target, options, ..] = fields[..] else { return None };
    let target = unescape(target);
    let request = asked.iter().find(|mount| mount.container_path.trim_end_matches('/') == target);
    let below = |tops: &[&str]| {
        tops.iter()
            .any(|top| target.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    };
    if request.is_none() && below(&USUAL) && !below(&UNUSUAL) {
        return None;
    }
    let source = match request {
        Some(mount) => asked_source(mount),
        None => after.split(' ').next()?.to_owned(),
    };
    let read_only = options.split(',').any(|option| option == "ro");
    Some(Mount {
        target,
        source,
        content: format!("{device} {}", unescape(root)),
        read_only,
        asked: request.is_some(),
    })
}

/// What a mount of a pod shows, in the words of its manifest.
fn asked_source(mount: &cri::Mount) -> String {
    let Some(image) = mount.image.as_ref().filter(|image| !image.image.is_empty()) else {
        return mount.host_path.clone();
    };
    let name = [&image.user_specified_image, &image.image].into_iter().find(|name| !name.is_empty());
    match (name.map_or("", String::as_str), mount.image_sub_path.as_str()) {
        (name, "") => format!("image {name}"),
        (name, path) => format!("{path} of image {name}"),
    }
}

/// Blanks, tabs, line breaks and backslashes are octal in mountinfo.
fn unescape(field: &str) -> String {
    let mut text = field.to_owned();
    for (code, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(code, plain);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_requests_and_additions_are_told() {
        let text = "100 99 0:50 / / rw,relatime - overlay overlay rw,lowerdir=x\n\
            101 100 0:51 / /proc rw - proc proc rw\n\
            102 100 0:52 / /dev rw - tmpfs tmpfs rw\n\
            103 102 0:53 / /dev/shm rw - tmpfs shm rw\n\
            104 100 8:1 /vol/a\\040b /data ro,relatime master:1 - ext4 /dev/sda1 rw\n\
            105 100 8:1 /hosts /etc/hosts rw - ext4 /dev/sda1 rw\n\
            106 102 8:1 /t /dev/termination-log rw - ext4 /dev/sda1 rw\n";
        let asked = |host: &str, container: &str| cri::Mount {
            host_path: host.into(),
            container_path: container.into(),
            ..Default::default()
        };
        let requests = [asked("/vol/a b", "/data/"), asked("/x/t", "/dev/termination-log")];
        let found: Vec<_> = read(text, &requests)
            .into_iter()
            .map(|m| format!("{} {} {} {} {}", m.target, m.source, m.content, m.read_only, m.asked))
            .collect();
        assert_eq!(
            found,
            [
                "/ overlay 0:50 / false false",
                "/dev/shm tmpfs 0:53 / false false",
                "/data /vol/a b 8:1 /vol/a b true true",
                "/etc/hosts ext4 8:1 /hosts false false",
                "/dev/termination-log /x/t 8:1 /t false true",
            ]
        );
    }

    #[test]
    fn a_content_stands_once_with_all_who_see_it() {
        let mount = |target: &str, content: &str| Mount {
            target: target.into(),
            source: format!("source of {content}"),
            content: content.into(),
            read_only: false,
            asked: true,
        };
        let one = [mount("/data", "v"), mount("/", "root 1"), mount("/again", "v")];
        let two = [mount("/", "root 2"), mount("/in", "v")];
        let found = contents([&one[..], &two[..]].into_iter());
        let sources: Vec<_> = found.iter().map(|content| content.source).collect();
        assert_eq!(sources, ["source of root 1", "source of root 2", "source of v"]);
        let targets: Vec<_> = found[2].of(0).map(|mount| mount.target.as_str()).collect();
        assert_eq!((targets, found[2].containers()), (vec!["/data", "/again"], 2));
    }
}
