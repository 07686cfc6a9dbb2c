//! Exchanges two files as fast as it can, while somebody else looks at them: what makes a race out of a check and a use.
//!
//! Must not know: who looks.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::place;

/// How often a racy case is tried. On a real machine one try takes some ten milliseconds; the exchanges meanwhile are ten
/// thousands.
pub fn rounds() -> usize {
    place::rounds(2000, 100)
}

/// A thread that exchanges two names (renameat2(2), `RENAME_EXCHANGE`) until it is stopped.
#[derive(Debug)]
pub struct Flipper {
    stop: Arc<AtomicBool>,
    flips: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<(), Errno>>>,
}

impl Flipper {
    /// Starts. Both names must exist, and nobody else may take them away.
    pub fn start(a: &Path, b: &Path) -> Self {
        let (a, b): (PathBuf, PathBuf) = (a.to_owned(), b.to_owned());
        let (stop, flips) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, count) = (Arc::clone(&stop), Arc::clone(&flips));
        let exchange = move || {
            while !told.load(Ordering::Relaxed) {
                renameat2(AT_FDCWD, &a, AT_FDCWD, &b, RenameFlags::RENAME_EXCHANGE)?;
                count.fetch_add(1, Ordering::Relaxed);
                // Whoever looks needs the processor, too.
                thread::yield_now();
            }
            Ok(())
        };
        Self { stop, flips, thread: Some(thread::spawn(exchange)) }
    }

    /// Stops and shows that there was a race: at least `wanted` exchanges.
    ///
    /// # Errors
    /// An exchange was refused, or there were fewer.
    pub fn stop(mut self, wanted: usize) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the flipper is stopped once")?;
        thread.join().map_err(|_| anyhow!("the flipper panicked"))?.context("exchange")?;
        let flips = self.flips.load(Ordering::Relaxed);
        ensure!(flips >= wanted as u64, "{flips} exchanges are no race; {wanted} were wanted");
        Ok(flips)
    }
}

impl Drop for Flipper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
