//! How long to wait before a container is started again. kubelet's rule: the first restart is at once, then the pause
//! doubles from its base up to five minutes; ten minutes of running make it forget. Must not know what is restarted.

use std::time::Duration;

/// Longest pause.
const MOST: Duration = Duration::from_secs(300);
/// After a run of this length all is forgiven.
const FORGET: Duration = Duration::from_secs(600);

/// The pauses of one container.
#[derive(Debug)]
pub(super) struct Backoff {
    base: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(base: Duration) -> Self {
        Self { base, next: Duration::ZERO }
    }

    /// The pause after a run that lasted `ran`.
    pub(super) fn pause(&mut self, ran: Duration) -> Duration {
        if ran >= FORGET {
            self.next = Duration::ZERO;
        }
        let pause = self.next;
        self.next = if pause.is_zero() { self.base } else { pause * 2 }.min(MOST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_five_minutes_and_are_forgotten_after_ten() {
        let mut backoff = Backoff::new(Duration::from_secs(10));
        let short = Duration::from_secs(1);
        let pauses: Vec<u64> = (0..8).map(|_| backoff.pause(short).as_secs()).collect();
        assert_eq!(pauses, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.pause(Duration::from_secs(599)).as_secs(), 300);
        assert_eq!(backoff.pause(Duration::from_secs(600)).as_secs(), 0);
        assert_eq!(backoff.pause(short).as_secs(), 10);
    }
}
