//! Clocks.
//!
//! Must not know: what is timed.

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since the epoch (`CLOCK_REALTIME`).
pub fn realtime_nanos() -> i64 {
    nanos(ClockId::CLOCK_REALTIME)
}

/// Nanoseconds since boot, time asleep included (`CLOCK_BOOTTIME`): never set back.
pub fn boottime_nanos() -> i64 {
    nanos(ClockId::CLOCK_BOOTTIME)
}

fn nanos(clock: ClockId) -> i64 {
    // Both clocks exist on every Linux: the call cannot fail.
    clock_gettime(clock).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_set_and_go_forward() {
        assert!(realtime_nanos() > 1_700_000_000_000_000_000);
        let earlier = boottime_nanos();
        assert!(boottime_nanos() >= earlier);
    }
}
