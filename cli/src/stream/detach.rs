//! Detach keys: typed one after the other they end the session and not what runs in it.
//!
//! Must not know: terminals, connections.

use anyhow::{Result, bail};

/// Looks for the keys in what is typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DetachKeys {
    keys: Vec<u8>,
    /// How many of them have been typed.
    typed: usize,
}

impl DetachKeys {
    /// Reads a list such as `ctrl-p,ctrl-q`: letters, or `ctrl-` with a letter or one of `@[\]^_`.
    ///
    /// # Errors
    /// A key that is none.
    pub(crate) fn parse(list: &str) -> Result<Self> {
        let mut keys = Vec::new();
        for key in list.split(',').filter(|key| !key.is_empty()) {
            keys.push(match (key.strip_prefix("ctrl-").unwrap_or_default().as_bytes(), key.as_bytes()) {
                ([letter @ (b'a'..=b'z' | b'A'..=b'Z')], _) => letter.to_ascii_uppercase() - b'@',
                ([sign @ (b'@' | b'['..=b'_')], _) => sign - b'@',
                (_, [plain]) if plain.is_ascii_graphic() => *plain,
                _ => bail!("detach keys {list:?}: {key:?} is neither a character nor ctrl- and a letter"),
            });
        }
        if keys.is_empty() {
            bail!("detach keys {list:?}: there must be one at least");
        }
        Ok(Self { keys, typed: 0 })
    }

    /// Takes what was typed; gives what is to be passed on, and whether the keys are complete. Keys that may become
    /// the sequence are held back until it is clear that they do not.
    pub(crate) fn push(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for byte in typed {
            loop {
                if *byte == self.keys[self.typed] {
                    self.typed += 1;
                    break;
                }
                if self.typed == 0 {
                    passed.push(*byte);
                    break;
                }
                // The first of the held keys was none; the others may begin the sequence anew.
                let held = self.keys[..self.typed].to_vec();
                let again = (1..held.len()).find(|from| self.keys.starts_with(&held[*from..]));
                let from = again.unwrap_or(held.len());
                passed.extend_from_slice(&held[..from]);
                self.typed = held.len() - from;
            }
            if self.typed == self.keys.len() {
                return (passed, true);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_letters_and_control_characters() {
        assert_eq!(DetachKeys::parse("ctrl-p,ctrl-q").unwrap().keys, [16, 17]);
        assert_eq!(DetachKeys::parse("ctrl-@,ctrl-],a,~").unwrap().keys, [0, 29, b'a', b'~']);
        for bad in ["", ",", "ctrl-", "ctrl-1", "enter", "\u{fc}"] {
            assert!(DetachKeys::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn they_are_found_whatever_the_pieces_and_everything_else_is_passed_on() {
        let keys = || DetachKeys::parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(keys().push(b"ab\x10\x11cd"), (b"ab".to_vec(), true));
        let mut split = keys();
        assert_eq!(split.push(b"x\x10"), (b"x".to_vec(), false));
        assert_eq!(split.push(b"\x11"), (Vec::new(), true));
        let mut none = keys();
        assert_eq!(none.push(b"\x10"), (Vec::new(), false));
        assert_eq!(none.push(b"y\x11"), (b"\x10y\x11".to_vec(), false));
        assert_eq!(keys().push(b"\x10\x10\x11"), (b"\x10".to_vec(), true));
        let mut long = DetachKeys::parse("a,a,b").unwrap();
        assert_eq!(long.push(b"aaaab"), (b"aa".to_vec(), true));
        let mut mixed = DetachKeys::parse("a,b,a,c").unwrap();
        assert_eq!(mixed.push(b"ababac"), (b"ab".to_vec(), true));
    }
}
