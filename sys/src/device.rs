//! Device numbers.
//!
//! Must not know: which devices there are.

/// Major number of a `dev_t`.
#[must_use]
pub fn major(device: u64) -> u32 {
    libc::major(device)
}

/// Minor number of a `dev_t`.
#[must_use]
pub fn minor(device: u64) -> u32 {
    libc::minor(device)
}
