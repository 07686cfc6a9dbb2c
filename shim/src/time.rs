//! Time as CRI counts it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Nanoseconds since the epoch.
#[must_use]
pub fn now_nanos() -> i64 {
    nanos(SystemTime::now())
}

/// The same of another time.
#[must_use]
pub fn nanos(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Where the time of one operation goes: laps, told in one line at debug level when it is dropped.
#[derive(Debug)]
pub struct Stopwatch {
    what: &'static str,
    last: Instant,
    laps: Vec<(&'static str, Duration)>,
}

impl Stopwatch {
    /// Starts it.
    #[must_use]
    pub fn start(what: &'static str) -> Self {
        Self { what, last: Instant::now(), laps: Vec::new() }
    }

    /// A stage is over.
    pub fn lap(&mut self, stage: &'static str) {
        let now = Instant::now();
        self.laps.push((stage, now - self.last));
        self.last = now;
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        if tracing::enabled!(tracing::Level::DEBUG) {
            let laps: Vec<String> =
                self.laps.iter().map(|(stage, took)| format!("{stage} {} us", took.as_micros())).collect();
            tracing::debug!(laps = laps.join(", "), "{}", self.what);
        }
    }
}
