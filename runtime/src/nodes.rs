//! File systems with device nodes, made by a process of the host for a child that may not make them.
//!
//! mknod(2) of a device needs CAP_MKNOD in the host's user namespace, and a node in a file system that another user
//! namespace has made cannot be opened (user_namespaces(7)). What is made here belongs to the host's, wherever it is
//! attached.
//!
//! Must not know: which devices a container gets, who owns them.

use crate::error::PlanError;
use crisp_sys::mount::{self, AttrChange, MountAttr};
use crisp_sys::raw::path;
use crisp_sys::{Errno, SysError};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

/// A device node to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Below the file system's root, without a slash in front.
    pub path: String,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`, with permission bits.
    pub mode: u32,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Owner, as the host sees it.
    pub uid: u32,
    /// Group, as the host sees it.
    pub gid: u32,
}

/// A file system to be made for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// A tmpfs for `/dev`.
    Dev {
        /// `fsconfig` strings (`size=65536k`) and flags; the ids in them are the host's.
        options: Vec<String>,
        /// Properties of the mount.
        attributes: MountAttr,
        /// Owner of the directories that lead to nodes, as the host sees it.
        owner: (u32, u32),
        /// What is in it.
        nodes: Vec<Node>,
    },
    /// What masks hide paths behind (`null`, `empty`), a place to attach the container's root (`root`), and nodes that
    /// are bound to places of the container: [`name`] says how they are called, [`Node::path`] is not looked at.
    Kit(Vec<Node>),
}

impl Made {
    /// Makes it: a detached mount.
    ///
    /// # Errors
    /// The node or option that the kernel refused.
    pub fn make(&self) -> Result<OwnedFd, PlanError> {
        match self {
            Self::Dev { options, attributes, owner, nodes } => {
                let options: Vec<(&str, Option<&str>)> = options.iter().map(|option| split(option)).collect();
                Ok(dev(&options, *attributes, *owner, nodes)?)
            }
            Self::Kit(nodes) => kit(nodes),
        }
    }
}

fn split(option: &str) -> (&str, Option<&str>) {
    option.split_once('=').map_or((option, None), |(key, value)| (key, Some(value)))
}

/// What the node of this number is called in a kit.
///
/// # Errors
/// Never: a number has no NUL byte.
pub(crate) fn name(number: u32) -> Result<CString, PlanError> {
    CString::new(format!("node{number}")).map_err(|_| PlanError::invalid("ops.device.node", "a NUL byte"))
}

fn dev(
    options: &[(&str, Option<&str>)],
    attributes: MountAttr,
    owner: (u32, u32),
    nodes: &[Node],
) -> Result<OwnedFd, SysError> {
    let fs = mount::fsopen("tmpfs")?;
    for (key, value) in options {
        match value {
            Some(value) => mount::fsconfig_string(&fs, key, value)?,
            None => mount::fsconfig_flag(&fs, key)?,
        }
    }
    mount::fsconfig_create(&fs)?;
    let dev = mount::fsmount(&fs, attributes)?;
    // Modes are as they are asked for, whatever the process's umask is: it is not touched, because it is shared by all
    // threads.
    for node in nodes {
        let at = |errno| SysError::new("make device", format!("/dev/{}", node.path), errno);
        let (mut directory, mut name) = (dev.try_clone().map_err(|_| at(Errno::EMFILE))?, node.path.as_str());
        while let Some((parent, rest)) = name.split_once('/') {
            directory = enter(&directory, parent, owner).map_err(at)?;
            name = rest;
        }
        make(&directory, &CString::new(name).map_err(|_| at(Errno::EINVAL))?, node).map_err(at)?;
    }
    Ok(dev)
}

/// The directory of this name, made if it is missing. Nobody else has ever seen this file system: there are no links.
fn enter(directory: &OwnedFd, name: &str, owner: (u32, u32)) -> Result<OwnedFd, Errno> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    match path::mkdirat(directory.as_fd(), &name, 0o755) {
        Ok(()) => {
            path::chmodat(directory.as_fd(), &name, 0o755)?;
            path::fchownat(directory.as_fd(), &name, owner.0, owner.1)?;
        }
        Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno),
    }
    path::open_in_root(directory.as_fd(), &name, libc::O_PATH | libc::O_DIRECTORY, 0)
}

fn make(directory: &OwnedFd, name: &CString, node: &Node) -> Result<(), Errno> {
    path::mknodat(directory.as_fd(), name, node.mode, node.major, node.minor)?;
    path::chmodat(directory.as_fd(), name, node.mode & 0o7777)?;
    path::fchownat(directory.as_fd(), name, node.uid, node.gid)
}

fn kit(nodes: &[Node]) -> Result<OwnedFd, PlanError> {
    let called = |errno| SysError::new("make", "what hides masked paths", errno);
    let kit = crate::init::ops::masks_tmpfs().map_err(called)?;
    // Made with this process's umask.
    path::chmodat(kit.as_fd(), c"null", 0o666).map_err(called)?;
    for (node, number) in nodes.iter().zip(1..) {
        make(&kit, &name(number)?, node).map_err(|errno| SysError::new("make device", &node.path, errno))?;
    }
    let readonly = AttrChange { set: MountAttr::RDONLY, ..AttrChange::default() };
    mount::mount_setattr(&kit, false, &readonly)?;
    Ok(kit)
}
