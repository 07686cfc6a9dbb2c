//! Sockets inside a pod's network namespace, made from outside of it.
//!
//! Must not know: which runtime made the namespace.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

/// A listener on `address` inside the network namespace pinned at `pin`; it can be used from anywhere.
///
/// # Errors
/// There is no namespace, or the address cannot be had.
pub fn listen(pin: &Path, address: SocketAddr) -> Result<TcpListener> {
    run(pin, move || {
        TcpListener::bind(address).with_context(|| format!("listen on {address} inside the pod"))
    })
}

/// Runs `work` on a thread of its own inside the network namespace pinned at `pin`.
///
/// # Errors
/// There is no namespace, or those of `work`.
pub fn run<T: Send>(pin: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let net = File::open(pin).with_context(|| format!("open {}", pin.display()))?;
    thread::scope(|scope| {
        let inside = scope.spawn(move || {
            setns(&net, CloneFlags::CLONE_NEWNET).context("setns")?;
            work()
        });
        inside.join().map_err(|_| anyhow!("the thread inside the pod panicked"))?
    })
}
