//! `crisp play --logs`: what a container writes, each line with the container's name in front.

use std::{
    io::{Write, stderr, stdout},
    path::PathBuf,
};

use anyhow::Result;

use crate::{
    endpoint::Clients,
    logs::{follow, line},
};

/// Prints a run's log until it has ended. A log that cannot be read is said to be so, and is no reason to end the pod.
pub(super) async fn follow(clients: Clients, container: String, path: PathBuf, name: String) {
    let mut prefixer = Prefixer::new(&name);
    let followed = match follow::Follower::open(&path) {
        Ok(file) => {
            let print = |text: &[u8]| -> Result<()> {
                stdout().write_all(&prefixer.lines(text)?)?;
                Ok(())
            };
            follow::to_the_end(&clients, &container, file, print).await
        }
        Err(error) => Err(error.into()),
    };
    let rest = prefixer.rest();
    let written = stdout().write_all(&rest).and_then(|()| stdout().flush());
    if let Err(error) = followed.and_then(|()| Ok(written?)) {
        // Standard error may be gone as well.
        let _ = writeln!(stderr(), "crisp: log of {name} ({}): {error:#}", path.display());
    }
}

/// Puts a name in front of every line, and pieces of a line together.
#[derive(Debug)]
struct Prefixer {
    prefix: String,
    piece: Vec<u8>,
}

impl Prefixer {
    fn new(name: &str) -> Self {
        Self { prefix: format!("{name} | "), piece: Vec::new() }
    }

    fn lines(&mut self, text: &[u8]) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for entry in line::entries(text) {
            let entry = entry?;
            self.piece.extend_from_slice(entry.content);
            if !entry.partial {
                out.extend(self.line());
            }
        }
        Ok(out)
    }

    /// The piece of a line that has no end, as a line; nothing when there is none.
    fn rest(&mut self) -> Vec<u8> {
        if self.piece.is_empty() { Vec::new() } else { self.line() }
    }

    fn line(&mut self) -> Vec<u8> {
        let piece = std::mem::take(&mut self.piece);
        [self.prefix.as_bytes(), &piece, b"\n"].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_containers_name() {
        let mut prefixer = Prefixer::new("web");
        let text = b"2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stdout F \n2026-01-01T00:00:00Z stdout P tw\n";
        assert_eq!(prefixer.lines(text).unwrap(), b"web | one\nweb | \n");
        assert_eq!(
            prefixer.lines(b"2026-01-01T00:00:00Z stdout F o\n2026-01-01T00:00:00Z stdout P end\n").unwrap(),
            b"web | two\n"
        );
        assert_eq!(prefixer.rest(), b"web | end\n");
        assert_eq!(prefixer.rest(), b"");
    }
}
