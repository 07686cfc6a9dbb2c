//! What `crisp play` says while it works: lines with the time, on standard error. Must not know what happens.

use std::{fmt::Display, io::Write};

use indicatif::MultiProgress;
use jiff::Zoned;

/// Where progress is told.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// Bars of pulls; lines go above them.
    pub(super) bars: MultiProgress,
}

impl Report {
    pub(super) fn new() -> Self {
        Self { bars: MultiProgress::new() }
    }

    /// Tells one thing about a pod.
    pub(super) fn line(&self, pod: &str, text: impl Display) {
        let time = Zoned::now().strftime("%H:%M:%S");
        // indicatif draws on standard error, and draws its bars again below the line. A terminal that is gone (SIGHUP)
        // must not keep the pod from being stopped.
        self.bars.suspend(|| {
            let _ = writeln!(std::io::stderr(), "{time} {pod}: {text}");
        });
    }
}
