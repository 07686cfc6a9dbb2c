//! Dead storage: a file system whose one file can be looked up and opened, and whose content never comes.
//!
//! It speaks the kernel's FUSE protocol (include/uapi/linux/fuse.h) itself. A process that reads the file waits in the
//! kernel where no signal reaches it, until the connection is aborted, which dropping this does. Must not know: who
//! reads.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Name of the file.
pub const FILE: &str = "file";

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const ACCESS: u32 = 34;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
const ENOENT: i32 = 2;
const ENOSYS: i32 = 38;
const ROOT: u64 = 1;
const NODE: u64 = 2;

/// The mounted file system.
#[derive(Debug)]
pub struct DeadStorage {
    at: PathBuf,
    readers: Arc<AtomicU32>,
    server: Option<JoinHandle<()>>,
}

impl DeadStorage {
    /// Mounts it on the folder `at`, which is made.
    ///
    /// # Errors
    /// There is no `/dev/fuse`, or the kernel refuses.
    pub fn mount(at: &Path) -> Result<Self> {
        fs::create_dir(at).with_context(|| format!("make {}", at.display()))?;
        let device = File::options().read(true).write(true).open("/dev/fuse").context("open /dev/fuse")?;
        let options = format!("fd={},rootmode=40755,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        mount(Some("dead"), at, Some("fuse"), MsFlags::empty(), Some(options.as_str()))
            .with_context(|| format!("mount a FUSE file system on {}", at.display()))?;
        let readers = Arc::new(AtomicU32::new(0));
        let counter = readers.clone();
        let server = Some(thread::spawn(move || serve(device, &counter)));
        Ok(Self { at: at.to_owned(), readers, server })
    }

    /// How many reads wait for an answer.
    pub fn readers(&self) -> u32 {
        self.readers.load(Ordering::Relaxed)
    }
}

impl Drop for DeadStorage {
    /// `MNT_FORCE` aborts the connection: everybody who waits gets an error, and the server's next read fails.
    fn drop(&mut self) {
        let _ = umount2(&self.at, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn serve(mut device: File, readers: &AtomicU32) {
    let mut request = vec![0; 1 << 20];
    // The read fails once the connection is gone.
    while let Ok(length) = device.read(&mut request) {
        let Some(header) = request.get(..length).and_then(Header::parse) else { return };
        let answer = match header.opcode {
            INIT => Some(Ok(init())),
            GETATTR => Some(Ok(attributes(header.node))),
            LOOKUP if header.node == ROOT && name(&request[40..length]) == FILE.as_bytes() => {
                Some(Ok(entry()))
            }
            LOOKUP => Some(Err(ENOENT)),
            OPEN | OPENDIR => Some(Ok(vec![0; 16])),
            ACCESS => Some(Ok(Vec::new())),
            READ => {
                readers.fetch_add(1, Ordering::Relaxed);
                None
            }
            FORGET | BATCH_FORGET | INTERRUPT => None,
            _ => Some(Err(ENOSYS)),
        };
        if let Some(answer) = answer {
            let (error, body) = answer.map_or_else(|errno: i32| (-errno, Vec::new()), |body| (0, body));
            let length = 16 + body.len() as u32;
            let head =
                [&length.to_le_bytes()[..], &error.to_le_bytes(), &header.unique.to_le_bytes()].concat();
            // A requester that was killed meanwhile is no reason to end.
            let _ = device.write(&[head, body].concat());
        }
    }
}

/// The part of `struct fuse_in_header` that counts here.
struct Header {
    opcode: u32,
    unique: u64,
    node: u64,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let opcode = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
        Some(Self { opcode, unique: u64_at(8)?, node: u64_at(16)? })
    }
}

fn name(argument: &[u8]) -> &[u8] {
    argument.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// `struct fuse_init_out`: protocol 7.31, writes of 64 KiB.
fn init() -> Vec<u8> {
    let mut out = vec![0; 64];
    out[..4].copy_from_slice(&7u32.to_le_bytes());
    out[4..8].copy_from_slice(&31u32.to_le_bytes());
    out[20..24].copy_from_slice(&(64u32 << 10).to_le_bytes());
    out
}

/// `struct fuse_attr`: a folder or a file of one page, everybody's.
fn attr(node: u64) -> Vec<u8> {
    let mode: u32 = if node == ROOT { 0o040_755 } else { 0o100_755 };
    let mut out = vec![0; 88];
    out[..8].copy_from_slice(&node.to_le_bytes());
    out[8..16].copy_from_slice(&4096u64.to_le_bytes());
    out[60..64].copy_from_slice(&mode.to_le_bytes());
    out[64..68].copy_from_slice(&1u32.to_le_bytes());
    out
}

/// `struct fuse_attr_out`.
fn attributes(node: u64) -> Vec<u8> {
    [vec![0; 16], attr(node)].concat()
}

/// `struct fuse_entry_out`.
fn entry() -> Vec<u8> {
    [NODE.to_le_bytes().to_vec(), vec![0; 32], attr(NODE)].concat()
}
