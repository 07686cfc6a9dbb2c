use proptest::prelude::*;

use super::{super::headers::Writer, *};

/// What a decoder makes of `input` when it gets at most `piece` bytes more each time.
fn decoded(input: &[u8], piece: usize) -> Result<Vec<(Event, Vec<u8>)>, FrameError> {
    let mut decoder = Decoder::default();
    let (mut events, mut start, mut end) = (Vec::new(), 0, 0);
    loop {
        let step = decoder.step(&input[start..end])?;
        if let Some(event) = step.event {
            let bytes = match &event {
                Event::Data { bytes, .. } => input[start + bytes.start..start + bytes.end].to_vec(),
                _ => Vec::new(),
            };
            events.push((event, bytes));
        } else if step.used == 0 {
            if end == input.len() {
                return Ok(events);
            }
            end = (end + piece.max(1)).min(input.len());
        }
        start += step.used;
    }
}

/// All data of a stream, and whether it has ended.
fn data_of(events: &[(Event, Vec<u8>)], wanted: u32) -> (Vec<u8>, bool) {
    let (mut all, mut ended) = (Vec::new(), false);
    for (event, bytes) in events {
        if let Event::Data { stream, fin, .. } = event
            && *stream == wanted
        {
            assert!(!ended, "data behind the end");
            all.extend_from_slice(bytes);
            ended |= fin;
        }
    }
    (all, ended)
}

fn conversation() -> Vec<u8> {
    let mut writer = Writer::default();
    let mut bytes = syn_stream(1, &writer.write(&[("Streamtype", "error")]));
    bytes.extend(syn_stream(3, &writer.write(&[("streamtype", "data"), ("port", "80")])));
    bytes.extend(data_head(3, false, 5));
    bytes.extend(b"hello");
    bytes.extend(ping(7));
    bytes.extend(data_head(3, true, 0));
    bytes.extend(reset(1, Reset::Cancel));
    bytes.extend(go_away(3));
    bytes
}

#[test]
fn a_conversation_is_read_whatever_the_pieces_in_which_it_comes() {
    let bytes = conversation();
    for piece in [1, 2, 3, 7, 8, 9, 100, bytes.len()] {
        let events = decoded(&bytes, piece).unwrap();
        let headers = vec![("streamtype".to_owned(), "error".to_owned())];
        assert_eq!(events[0].0, Event::Syn { stream: 1, fin: false, headers });
        assert_eq!(data_of(&events, 3), (b"hello".to_vec(), true), "{piece}");
        let rest: Vec<_> = events.iter().map(|(event, _)| event).rev().take(2).collect();
        assert_eq!(rest, [&Event::GoAway, &Event::Reset { stream: 1 }]);
        assert!(events.iter().any(|(event, _)| *event == Event::Ping(7)));
    }
}

#[test]
fn a_large_frame_comes_in_pieces_and_ends_once() {
    let mut bytes = data_head(9, true, 0x00ff_ffff).to_vec();
    bytes.resize(bytes.len() + 0x00ff_ffff, b'x');
    let events = decoded(&bytes, 40_000).unwrap();
    assert!(events.len() > 100);
    let (data, ended) = data_of(&events, 9);
    assert_eq!((data.len(), ended), (0x00ff_ffff, true));
}

#[test]
fn what_cannot_be_meant_is_refused_by_name() {
    assert_eq!(decoded(&[0x80, 2, 0, 1, 0, 0, 0, 0], 8), Err(FrameError::Version(2)));
    let large = head(0x8003_0001, 0, CONTROL_MAX);
    assert_eq!(decoded(&large, 8), Err(FrameError::Size(CONTROL_MAX + 8)));
    for kind in [1, 2, 3, 6, 8] {
        assert_eq!(decoded(&[0x80, 3, 0, kind, 0, 0, 0, 0], 8), Err(FrameError::Short(kind.into())));
    }
}

#[test]
fn frames_that_mean_nothing_here_are_passed_over() {
    for kind in [4u16, 9, 10, 77] {
        let mut bytes = control(kind, &[&[0; 12]]);
        bytes.extend(ping(1));
        assert_eq!(decoded(&bytes, 100).unwrap(), [(Event::Ping(1), Vec::new())]);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic_or_stand_still(
        mut bytes in prop::collection::vec(any::<u8>(), 0..400),
        piece in 1usize..64,
        control in any::<bool>(),
    ) {
        if control && bytes.len() > 8 {
            (bytes[0], bytes[1], bytes[2], bytes[5]) = (0x80, 3, 0, 0);
        }
        let _ = decoded(&bytes, piece);
    }

    #[test]
    fn a_changed_byte_makes_neither_of_a_conversation(at in any::<prop::sample::Index>(), value: u8, piece in 1usize..64) {
        let mut bytes = conversation();
        let at = at.index(bytes.len());
        bytes[at] = value;
        let _ = decoded(&bytes, piece);
    }

    #[test]
    fn data_arrives_as_it_was_sent(
        sent in prop::collection::vec((1u32..4, prop::collection::vec(any::<u8>(), 0..300)), 0..20),
        piece in 1usize..500,
    ) {
        let mut bytes = Vec::new();
        for (stream, data) in &sent {
            bytes.extend(data_head(*stream, false, data.len()));
            bytes.extend(data);
        }
        let events = decoded(&bytes, piece).unwrap();
        for stream in 1..4 {
            let expected: Vec<u8> =
                sent.iter().filter(|(id, _)| *id == stream).flat_map(|(_, data)| data.clone()).collect();
            prop_assert_eq!(data_of(&events, stream), (expected, false));
        }
    }
}
