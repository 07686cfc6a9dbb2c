use proptest::prelude::*;

use super::*;

#[derive(Debug, PartialEq, Eq)]
enum Told {
    Message(bool, Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
}

/// What a decoder makes of `input` when it gets at most `piece` bytes more each time: whole messages.
fn decoded(role: Role, input: &[u8], piece: usize) -> Result<Vec<Told>, FrameError> {
    let mut decoder = Decoder::new(role);
    let (mut told, mut message, mut start, mut end) = (Vec::new(), Vec::new(), 0, 0);
    let mut input = input.to_vec();
    loop {
        let step = decoder.step(&mut input[start..end])?;
        match step.event {
            Some(Event::Piece { bytes, text, first, last }) => {
                assert_eq!(first, message.is_empty());
                message.push(input[start + bytes.start..start + bytes.end].to_vec());
                if last {
                    told.push(Told::Message(text, message.concat()));
                    message.clear();
                }
            }
            Some(Event::Ping(content)) => told.push(Told::Ping(content)),
            Some(Event::Pong) => told.push(Told::Pong),
            Some(Event::Close(code)) => told.push(Told::Close(code)),
            None if step.used == 0 => {
                if end == input.len() {
                    return Ok(told);
                }
                end = (end + piece.max(1)).min(input.len());
            }
            None => {}
        }
        start += step.used;
    }
}

const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0xf8];

fn frame(first: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    masked(first & 0x0f, MASK, content, &mut bytes);
    bytes[0] = first;
    bytes
}

#[test]
fn messages_in_one_frame_or_many_are_the_same() {
    let mut bytes = frame(0x82, b"whole");
    bytes.extend(frame(0x01, b"in "));
    bytes.extend(frame(0x89, b"ping between"));
    bytes.extend(frame(0x00, b""));
    bytes.extend(frame(0x80, b"pieces"));
    bytes.extend(frame(0x82, b""));
    bytes.extend(frame(0x8a, b""));
    bytes.extend(frame(0x88, &1000u16.to_be_bytes()));
    let expected = [
        Told::Message(false, b"whole".to_vec()),
        Told::Ping(b"ping between".to_vec()),
        Told::Message(true, b"in pieces".to_vec()),
        Told::Message(false, Vec::new()),
        Told::Pong,
        Told::Close(Some(1000)),
    ];
    for piece in [1, 2, 5, 1000] {
        assert_eq!(decoded(Role::Server, &bytes, piece).unwrap(), expected);
    }
}

#[test]
fn what_a_server_sends_a_client_reads_in_all_three_lengths() {
    for length in [0, 125, 126, 0xffff, 0x1_0000] {
        let mut bytes = Vec::new();
        message_head(false, length, &mut bytes);
        bytes.resize(bytes.len() + length, 7);
        pong(b"", &mut bytes);
        close(NORMAL, &mut bytes);
        let told = decoded(Role::Client, &bytes, 1000).unwrap();
        assert_eq!(told, [Told::Message(false, vec![7; length]), Told::Pong, Told::Close(Some(1000))]);
    }
}

#[test]
fn what_breaks_the_protocol_is_refused_by_name() {
    let server = |bytes: &[u8]| decoded(Role::Server, bytes, 1).unwrap_err();
    assert_eq!(server(&frame(0xc2, b"x")), FrameError::Reserved);
    assert_eq!(server(&frame(0x83, b"x")), FrameError::Opcode(3));
    assert!(matches!(server(&[0x82, 1, b'x']), FrameError::Mask(_)));
    assert_eq!(server(&frame(0x89, &[0; 126])), FrameError::Control);
    assert_eq!(server(&frame(0x09, b"")), FrameError::Control);
    assert_eq!(server(&frame(0x80, b"x")), FrameError::Order);
    assert_eq!(server(&[frame(0x02, b"x"), frame(0x82, b"x")].concat()), FrameError::Order);
    assert_eq!(server(&[0x82, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0]), FrameError::Length);
    assert!(matches!(decoded(Role::Client, &frame(0x82, b"x"), 1), Err(FrameError::Mask(_))));
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic_or_stand_still(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        piece in 1usize..64,
        server in any::<bool>(),
    ) {
        let _ = decoded(if server { Role::Server } else { Role::Client }, &bytes, piece);
    }

    #[test]
    fn messages_arrive_as_they_were_sent(
        sent in prop::collection::vec((any::<[u8; 4]>(), prop::collection::vec(any::<u8>(), 0..700)), 0..10),
        piece in 1usize..1000,
    ) {
        let mut bytes = Vec::new();
        for (mask, content) in &sent {
            masked_message(*mask, content, &mut bytes);
        }
        let expected: Vec<_> = sent.into_iter().map(|(_, content)| Told::Message(false, content)).collect();
        prop_assert_eq!(decoded(Role::Server, &bytes, piece).unwrap(), expected);
    }
}
