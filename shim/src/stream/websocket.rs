//! WebSocket (RFC 6455), as far as streams need it: frames, without any I/O, and what proves a handshake.
//!
//! Must not know: sockets, what messages mean.

pub(super) mod connection;
pub mod frame;

pub use frame::{Decoder, Event, FrameError, Role};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::digest;

/// What a key is hashed with (RFC 6455, section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The value of `Sec-WebSocket-Accept` for a client's `Sec-WebSocket-Key`.
#[must_use]
pub fn accept(key: &str) -> String {
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes());
    STANDARD.encode(digest)
}

/// Whether a client's key is what it has to be: 16 bytes in base64.
#[must_use]
pub fn is_key(key: &str) -> bool {
    STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc_is_accepted_as_it_says() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_key_is_16_bytes() {
        assert!(is_key("dGhlIHNhbXBsZSBub25jZQ=="));
        for bad in ["", "dGhlIHNhbXBsZSBub25j", "not base64 at all!!!", "AAAAAAAAAAAAAAAAAAAAAAA="] {
            assert!(!is_key(bad), "{bad}");
        }
    }
}
