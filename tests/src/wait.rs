//! Waiting for a condition, with a limit that is there to end a broken run and not to measure anything.
//!
//! Must not know: what is waited for.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The limit for anything that ends by itself. Generous: a virtual machine without hardware help is 10 to 20 times slower.
pub const LONG: Duration = Duration::from_secs(180);

/// Calls `probe` until it gives `Ok`, and returns that.
///
/// # Errors
/// The limit has passed; the error says what was waited for and what `probe` saw last.
pub fn until<T, E: Display>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<T, E>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(seen) if Instant::now() >= end => bail!("waited {limit:?} for {what}; last seen: {seen}"),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// [`until`] for a plain yes or no.
///
/// # Errors
/// The limit has passed.
pub fn until_true(what: &str, limit: Duration, mut probe: impl FnMut() -> bool) -> Result<()> {
    until(what, limit, || if probe() { Ok(()) } else { Err("not yet") })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::until;

    #[test]
    fn the_last_sight_is_in_the_error() {
        let mut n = 0;
        let error = until::<(), _>("the end", Duration::from_millis(30), || {
            n += 1;
            Err(format!("sight {n}"))
        });
        assert!(error.is_err_and(|e| e.to_string().contains(&format!("sight {n}"))));
    }
}
