//! A page shared with a child: how far it has come, readable after its death.
//!
//! Must not know: what the number means.

#![expect(unsafe_code, reason = "a shared mapping has no safe form")]

use crate::errno::{Errno, SysError};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// A number in memory that stays shared across `clone3` (`MAP_SHARED | MAP_ANONYMOUS`).
#[derive(Debug)]
pub struct SharedWord {
    word: NonNull<AtomicU32>,
}

/// What mmap(2) rounds the length up to anyway.
const LENGTH: usize = size_of::<AtomicU32>();

impl SharedWord {
    /// Maps a fresh one, 0.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new() -> Result<Self, SysError> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(SysError::new("mmap", "", Errno::last()));
        }
        match NonNull::new(address.cast()) {
            Some(word) => Ok(Self { word }),
            None => Err(SysError::new("mmap", "", Errno::EINVAL)),
        }
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the mapping is page-aligned, zeroed, and lives as long as `self`; access is atomic only.
        unsafe { self.word.as_ref() }
    }

    /// Where the kernel stores a number in it.
    pub(crate) fn address(&self) -> *mut u32 {
        self.word().as_ptr()
    }

    /// Stores a value.
    pub fn set(&self, value: u32) {
        self.word().store(value, Ordering::Relaxed);
    }

    /// Loads the value.
    pub fn get(&self) -> u32 {
        self.word().load(Ordering::Relaxed)
    }
}

// SAFETY: all access goes through an atomic.
unsafe impl Send for SharedWord {}
// SAFETY: all access goes through an atomic.
unsafe impl Sync for SharedWord {}

impl Drop for SharedWord {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and no reference outlives `self`. munmap cannot
        // fail for it.
        unsafe { libc::munmap(self.word.as_ptr().cast(), LENGTH) };
    }
}
