//! Messages to and from packets: bytes only, no sockets. Unknown fields are skipped, so that either end may be
//! the newer one.

use prost::Message as _;

use super::{MAX_MESSAGE, Message, Request};

/// A packet that cannot be made or understood.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The message would not fit one packet.
    #[error("message of {bytes} bytes, a packet holds at most {MAX_MESSAGE}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The packet is not a message of this protocol.
    #[error("packet that is no message: {0}")]
    Malformed(prost::DecodeError),
    /// The packet is a message, but says nothing that this version knows.
    #[error("message {id} says nothing that protocol version {} knows", super::VERSION)]
    Unknown {
        /// The id it carries.
        id: u64,
    },
}

impl Request {
    /// The packet that carries this request.
    ///
    /// # Errors
    /// [`WireError::TooLarge`].
    pub fn to_packet(&self) -> Result<Vec<u8>, WireError> {
        fits(self.encoded_len())?;
        Ok(self.encode_to_vec())
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// [`WireError::Malformed`]; [`WireError::Unknown`] for a call of a later version.
    pub fn from_packet(packet: &[u8]) -> Result<Self, WireError> {
        let request = Request::decode(packet).map_err(WireError::Malformed)?;
        if request.call.is_none() {
            return Err(WireError::Unknown { id: request.id });
        }
        Ok(request)
    }
}

impl Message {
    /// The packet that carries this reply or event.
    ///
    /// # Errors
    /// [`WireError::TooLarge`].
    pub fn to_packet(&self) -> Result<Vec<u8>, WireError> {
        fits(self.encoded_len())?;
        Ok(self.encode_to_vec())
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// [`WireError::Malformed`]; [`WireError::Unknown`] for a reply or event of a later version.
    pub fn from_packet(packet: &[u8]) -> Result<Self, WireError> {
        let message = Message::decode(packet).map_err(WireError::Malformed)?;
        if message.body.is_none() {
            return Err(WireError::Unknown { id: message.id });
        }
        Ok(message)
    }
}

fn fits(bytes: usize) -> Result<(), WireError> {
    if bytes > MAX_MESSAGE { Err(WireError::TooLarge { bytes }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;

    fn create() -> Request {
        Request {
            id: 7,
            call: Some(Call::Create(Create {
                container: "c0".repeat(32),
                pid: PidNamespace::Host as i32,
                log_dir: "/var/log/pods/x".into(),
                log_path: "web/0.log".into(),
                log_line_bytes: 8192,
                stdin: true,
                hold: true,
                stdin_once: true,
                target: "d1".repeat(32),
            })),
        }
    }

    #[test]
    fn a_request_comes_back_as_it_went() {
        assert_eq!(Request::from_packet(&create().to_packet().unwrap()).unwrap(), create());
    }

    #[test]
    fn the_whole_state_of_a_pod_comes_back_as_it_went() {
        let exit = Exit {
            container: "a".into(),
            code: -1,
            nanos: i64::MIN,
            oom_killed: true,
            started_nanos: 3,
            oom: Some(OomKills { kills: 2, level: OomLevel::Pod.into() }),
        };
        let pid = Pid { pid: 4_194_304, start_ticks: u64::MAX };
        let state = |name: &str, exit| ContainerState {
            container: name.into(),
            pid: Some(pid),
            started_nanos: 1,
            exit,
            log_dropped: 9,
            oom: Some(OomKills { kills: 2, level: OomLevel::Host.into() }),
        };
        let containers = vec![state("a", Some(exit)), state("b", None)];
        let message = Message {
            id: 1,
            body: Some(Body::Pod(PodState { version: 1, pid: 2, init: Some(pid), containers })),
        };
        assert_eq!(Message::from_packet(&message.to_packet().unwrap()).unwrap(), message);
    }

    #[test]
    fn fields_of_a_later_version_are_skipped() {
        let mut packet = create().to_packet().unwrap();
        // Field 100, a varint, and field 101, four bytes: behind the message, and inside the call.
        let later = [0xa0, 0x06, 0x2a, 0xaa, 0x06, 0x04, 1, 2, 3, 4];
        packet.extend(later);
        assert_eq!(Request::from_packet(&packet).unwrap(), create());
        let call = Call::Start(ContainerRef { container: "ab".into() });
        let packet = [&[0x08, 0x07, 0x2a, 4 + later.len() as u8, 0x0a, 2, b'a', b'b'][..], &later].concat();
        assert_eq!(Request::from_packet(&packet).unwrap(), Request { id: 7, call: Some(call) });
    }

    #[test]
    fn a_call_of_a_later_version_is_named_by_its_id() {
        let packet = [0x08, 0x07, 0xa2, 0x06, 0x00];
        assert!(matches!(Request::from_packet(&packet), Err(WireError::Unknown { id: 7 })));
        assert!(matches!(Message::from_packet(&packet), Err(WireError::Unknown { id: 7 })));
    }

    #[test]
    fn garbage_is_refused_and_so_is_what_does_not_fit() {
        assert!(matches!(Request::from_packet(&[0x12, 0xff]), Err(WireError::Malformed(_))));
        let long =
            Request { id: 1, call: Some(Call::Start(ContainerRef { container: "x".repeat(MAX_MESSAGE) })) };
        assert!(matches!(long.to_packet(), Err(WireError::TooLarge { .. })));
    }
}
