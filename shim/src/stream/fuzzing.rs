//! What the fuzz targets call (shim/fuzz), each with any bytes, and what must hold whatever comes. A test calls the
//! same with the corpus and with what random changes make of it. Each function panics when a rule is broken.
//!
//! A decoder may not mind how the bytes are cut on their way: one that does can be made to see another message than
//! whoever looked at it before.

use super::{
    inbox::Inbox,
    spdy,
    websocket::{self, Role},
};

/// Holds the largest control frame of either protocol.
const ROOM: usize = spdy::frame::CONTROL_MAX + 64;

/// What a stream of bytes meant; pieces of data that follow each other are one.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// Stream or kind, bytes, and whether they were the last.
    Data(u32, Vec<u8>, bool),
    Other(String),
    Broken(String),
}

fn tell(all: &mut Vec<Told>, next: Told) {
    match (all.last_mut(), next) {
        (Some(Told::Data(of, bytes, last @ false)), Told::Data(stream, more, over)) if *of == stream => {
            bytes.extend(more);
            *last = over;
        }
        (_, next) => all.push(next),
    }
}

/// Feeds `data` in pieces of `cut` bytes, and tells what `step` made of them.
fn fed<E>(
    data: &[u8],
    cut: usize,
    mut step: impl FnMut(&mut [u8]) -> Result<(usize, Option<E>), String>,
    mut told: impl FnMut(E, &[u8]) -> Told,
) -> Vec<Told> {
    let (mut inbox, mut all) = (Inbox::new(ROOM), Vec::new());
    for mut piece in data.chunks(cut.max(1)) {
        while !piece.is_empty() {
            let count = inbox.put(piece);
            assert!(count > 0, "a decoder that takes nothing of {ROOM} bytes");
            piece = &piece[count..];
            loop {
                let (used, event) = match step(inbox.waiting()) {
                    Ok(step) => step,
                    Err(error) => {
                        all.push(Told::Broken(error));
                        return all;
                    }
                };
                assert!(used <= inbox.waiting().len() && (used > 0 || event.is_none()));
                if let Some(event) = event {
                    let next = told(event, &inbox.waiting()[..used]);
                    tell(&mut all, next);
                }
                if used == 0 {
                    break;
                }
                inbox.take(used);
            }
        }
    }
    all
}

fn spdy_of(data: &[u8], cut: usize) -> Vec<Told> {
    let mut decoder = spdy::Decoder::default();
    fed(
        data,
        cut,
        |input| decoder.step(input).map(|step| (step.used, step.event)).map_err(|error| error.to_string()),
        |event, input| match event {
            spdy::Event::Data { stream, bytes, fin } => Told::Data(stream, input[bytes].to_vec(), fin),
            other => Told::Other(format!("{other:?}")),
        },
    )
}

fn websocket_of(data: &[u8], cut: usize, role: Role) -> Vec<Told> {
    let mut decoder = websocket::Decoder::new(role);
    fed(
        data,
        cut,
        |input| decoder.step(input).map(|step| (step.used, step.event)).map_err(|error| error.to_string()),
        |event, input| match event {
            websocket::Event::Piece { bytes, text, last, .. } => {
                Told::Data(text.into(), input[bytes].to_vec(), last)
            }
            other => Told::Other(format!("{other:?}")),
        },
    )
}

/// SPDY as a client sends it.
pub fn spdy(data: &[u8]) {
    let whole = spdy_of(data, usize::MAX);
    for cut in [1, 7, 64] {
        assert_eq!(spdy_of(data, cut), whole, "cut every {cut} bytes");
    }
}

/// A WebSocket, at either end.
pub fn websocket(data: &[u8]) {
    for role in [Role::Server, Role::Client] {
        let whole = websocket_of(data, usize::MAX, role);
        for cut in [1, 7, 64] {
            assert_eq!(websocket_of(data, cut, role), whole, "{role:?}, cut every {cut} bytes");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::Index};

    use super::{spdy, websocket};

    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut files: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(files.len() > 3, "the corpus of {name} is empty");
        files.iter().map(|file| std::fs::read(file).unwrap()).collect()
    }

    fn changed(name: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
        let change = (any::<Index>(), any::<u8>(), 0..4u8);
        (prop::sample::select(corpus(name)), prop::collection::vec(change, 0..5)).prop_map(
            |(mut data, changes)| {
                for (at, byte, how) in changes {
                    if data.is_empty() {
                        break;
                    }
                    let at = at.index(data.len());
                    match how {
                        0 => data[at] = byte,
                        1 => data[at] ^= 1 << (byte % 8),
                        2 => data.insert(at, byte),
                        _ => data.truncate(at),
                    }
                }
                data
            },
        )
    }

    #[test]
    fn the_corpus_holds() {
        corpus("spdy").iter().for_each(|data| spdy(data));
        corpus("websocket").iter().for_each(|data| websocket(data));
    }

    proptest! {
        #[test]
        fn spdy_holds_whatever_comes(data in changed("spdy")) {
            spdy(&data);
        }

        #[test]
        fn websockets_hold_whatever_comes(data in changed("websocket")) {
            websocket(&data);
        }
    }
}
