//! A container's output on its way into its CRI log file.
//!
//! One `ContainerLog` per container: two splitters, one file, and one `write` per batch of lines. Must not
//! know: the protocol, containers, the loop.

mod file;
mod format;

use std::path::Path;

pub(crate) use file::{LogError, LogFile};
pub(crate) use format::{Splitter, Stamp, Stream};

/// Lines are written out once this many bytes of them are waiting.
const BATCH_BYTES: usize = 16 * 1024;
/// Input taken between two looks at [`BATCH_BYTES`]: 1-byte lines grow fortyfold in the log.
const SLICE_BYTES: usize = 1024;

/// What the logs of all containers share: the clock text and the batch.
#[derive(Debug)]
pub(crate) struct Pen {
    stamp: Stamp,
    batch: Vec<u8>,
}

impl Pen {
    pub(crate) fn new() -> Self {
        Pen { stamp: Stamp::new(), batch: Vec::new() }
    }
}

/// The log of one container.
#[derive(Debug)]
pub(crate) struct ContainerLog {
    /// `None`: the pod has no log directory; output is read and dropped.
    file: Option<LogFile>,
    stdout: Splitter,
    stderr: Splitter,
}

impl ContainerLog {
    /// A log in `directory`/`name` (either empty: none), lines cut at `limit` bytes (0: the default).
    pub(crate) fn open(directory: &Path, name: &Path, limit: usize) -> Result<Self, LogError> {
        let wanted = !directory.as_os_str().is_empty() && !name.as_os_str().is_empty();
        let file = if wanted { Some(LogFile::open(directory, name)?) } else { None };
        Ok(ContainerLog {
            file,
            stdout: Splitter::new(Stream::Stdout, limit),
            stderr: Splitter::new(Stream::Stderr, limit),
        })
    }

    /// Logs `bytes`, read from `stream` at `nanos` nanoseconds since the epoch.
    pub(crate) fn push(&mut self, stream: Stream, bytes: &[u8], nanos: i64, pen: &mut Pen) {
        let Some(file) = &mut self.file else { return };
        let splitter = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        for slice in bytes.chunks(SLICE_BYTES) {
            splitter.push(slice, pen.stamp.at(nanos), &mut pen.batch);
            if pen.batch.len() >= BATCH_BYTES {
                flush(file, pen);
            }
        }
        flush(file, pen);
    }

    /// `stream` has ended: its unterminated rest is written.
    pub(crate) fn finish(&mut self, stream: Stream, nanos: i64, pen: &mut Pen) {
        let Some(file) = &mut self.file else { return };
        let splitter = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        splitter.finish(pen.stamp.at(nanos), &mut pen.batch);
        flush(file, pen);
    }

    /// Switches to a new file of the same name. Nothing is waiting between two calls, so that no line is split.
    pub(crate) fn reopen(&mut self) -> Result<(), LogError> {
        self.file.as_mut().map_or(Ok(()), LogFile::reopen)
    }

    /// There will be no container: see [`LogFile::discard`].
    pub(crate) fn discard(self) {
        if let Some(file) = self.file {
            file.discard();
        }
    }

    /// Lines that could not be written.
    pub(crate) fn dropped(&self) -> u64 {
        self.file.as_ref().map_or(0, LogFile::dropped)
    }
}

fn flush(file: &mut LogFile, pen: &mut Pen) {
    file.append(&pen.batch);
    pen.batch.clear();
}
