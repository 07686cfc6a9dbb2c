//! D-Bus messages, as far as systemd's manager is spoken with: calls of fixed shape out, replies, errors and one
//! signal in (D-Bus specification, "Marshaling" and "Message Format").
//!
//! Must not know: sockets, which calls there are.

/// Messages of this kind wait for an answer with their serial number.
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// Header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const SIGNATURE: u8 = 8;

/// Bytes of a header before its fields, and of the length of the fields.
const FIXED: usize = 16;
/// Longest message that is read. The specification's own limit is 128 MiB; what systemd tells of one unit is far less.
const LONGEST: usize = 16 << 20;

/// What is sent as the body of a call, in the order in which it is written.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    pub(super) fn byte(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend(value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.align(8);
        self.bytes.extend(value.to_le_bytes());
    }

    pub(super) fn bool(&mut self, value: bool) {
        self.u32(value.into());
    }

    /// A string or an object path.
    pub(super) fn text(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.bytes.extend(text.as_bytes());
        self.byte(0);
    }

    pub(super) fn signature(&mut self, signature: &str) {
        self.byte(signature.len() as u8);
        self.bytes.extend(signature.as_bytes());
        self.byte(0);
    }

    /// An array whose elements are aligned to `align`.
    pub(super) fn array(&mut self, align: usize, elements: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length_at = self.bytes.len() - 4;
        self.align(align);
        let begin = self.bytes.len();
        elements(self);
        let length = (self.bytes.len() - begin) as u32;
        self.bytes[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }

    pub(super) fn structure(&mut self, fields: impl FnOnce(&mut Self)) {
        self.align(8);
        fields(self);
    }
}

/// A call of `interface.member` of the object at `path`, with a body of this signature.
pub(super) fn call(
    serial: u32,
    path: &str,
    interface: &str,
    member: &str,
    signature: &str,
    body: &Writer,
) -> Vec<u8> {
    let mut message = Writer::default();
    for byte in [b'l', METHOD_CALL, 0, 1] {
        message.byte(byte);
    }
    message.u32(body.bytes.len() as u32);
    message.u32(serial);
    message.array(8, |fields| {
        for (code, kind, text) in [(PATH, "o", path), (INTERFACE, "s", interface), (MEMBER, "s", member)] {
            fields.structure(|field| {
                field.byte(code);
                field.signature(kind);
                field.text(text);
            });
        }
        if !signature.is_empty() {
            fields.structure(|field| {
                field.byte(SIGNATURE);
                field.signature("g");
                field.signature(signature);
            });
        }
    });
    message.align(8);
    message.bytes.extend(&body.bytes);
    message.bytes
}

/// What was received.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// The call with this serial number has succeeded.
    Return { serial: u32 },
    /// It has failed.
    Error { serial: u32, name: String, text: String },
    /// A job of systemd's has ended.
    JobRemoved { unit: String, result: String },
    /// Something that nobody here waits for.
    Other,
}

/// Bytes that are no message which could be read on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed D-Bus message: {0}")]
pub(super) struct Malformed(&'static str);

/// Length of the message that begins with these bytes; `None`: more are needed to tell.
pub(super) fn length(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    if bytes.len() < FIXED {
        return Ok(None);
    }
    if bytes[0] != b'l' {
        return Err(Malformed("not little-endian"));
    }
    let mut reader = Reader { bytes, at: 4 };
    let (body, _serial, fields) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let length = (FIXED + fields as usize).next_multiple_of(8) + body as usize;
    if length > LONGEST { Err(Malformed("too long")) } else { Ok(Some(length)) }
}

/// Reads one whole message.
pub(super) fn read(bytes: &[u8]) -> Result<Incoming, Malformed> {
    let kind = bytes.get(1).copied().ok_or(Malformed("cut short"))?;
    let mut reader = Reader { bytes, at: 12 };
    let end = reader.u32()? as usize + FIXED;
    let (mut member, mut error, mut reply) = (String::new(), String::new(), 0);
    while reader.at < end {
        reader.align(8);
        let code = reader.byte()?;
        match (code, reader.signature()?.as_str()) {
            (MEMBER, "s") => member = reader.text()?,
            (ERROR_NAME, "s") => error = reader.text()?,
            (REPLY_SERIAL, "u") => reply = reader.u32()?,
            (_, "s" | "o") => drop(reader.text()?),
            (_, "g") => drop(reader.signature()?),
            (_, "u") => drop(reader.u32()?),
            _ => return Err(Malformed("a header field of an unknown type")),
        }
    }
    reader.align(8);
    Ok(match (kind, member.as_str()) {
        (METHOD_RETURN, _) => Incoming::Return { serial: reply },
        // The text is optional.
        (ERROR, _) => Incoming::Error { serial: reply, name: error, text: reader.text().unwrap_or_default() },
        (SIGNAL, "JobRemoved") => {
            let (_id, _job) = (reader.u32()?, reader.text()?);
            Incoming::JobRemoved { unit: reader.text()?, result: reader.text()? }
        }
        _ => Incoming::Other,
    })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, length: usize) -> Result<&[u8], Malformed> {
        let end = self.at.checked_add(length).ok_or(Malformed("cut short"))?;
        let taken = self.bytes.get(self.at..end).ok_or(Malformed("cut short"))?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.align(4);
        let mut value = [0; 4];
        value.copy_from_slice(self.take(4)?);
        Ok(u32::from_le_bytes(value))
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let length = self.u32()? as usize;
        self.terminated(length)
    }

    fn signature(&mut self) -> Result<String, Malformed> {
        let length = self.byte()?.into();
        self.terminated(length)
    }

    fn terminated(&mut self, length: usize) -> Result<String, Malformed> {
        let text = String::from_utf8(self.take(length)?.to_vec()).map_err(|_| Malformed("not UTF-8"))?;
        self.take(1)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of the manager's: kind, header fields, body.
    fn incoming(kind: u8, fields: impl FnOnce(&mut Writer), body: &Writer) -> Vec<u8> {
        let mut message = Writer::default();
        for byte in [b'l', kind, 1, 1] {
            message.byte(byte);
        }
        message.u32(body.bytes.len() as u32);
        message.u32(77);
        message.array(8, fields);
        message.align(8);
        message.bytes.extend(&body.bytes);
        message.bytes
    }

    fn field(fields: &mut Writer, code: u8, signature: &str, value: impl FnOnce(&mut Writer)) {
        fields.structure(|field| {
            field.byte(code);
            field.signature(signature);
            value(field);
        });
    }

    #[test]
    fn a_call_is_laid_out_as_the_specification_says() {
        let mut body = Writer::default();
        body.text("a.slice");
        body.text("replace");
        let bytes = call(5, "/o", "a.b", "Stop", "ss", &body);
        let fields = [
            // path
            &[1, 1, b'o', 0, 2, 0, 0, 0, b'/', b'o', 0, 0, 0, 0, 0, 0][..],
            // interface
            &[2, 1, b's', 0, 3, 0, 0, 0, b'a', b'.', b'b', 0, 0, 0, 0, 0],
            // member
            &[3, 1, b's', 0, 4, 0, 0, 0, b'S', b't', b'o', b'p', 0, 0, 0, 0],
            // signature
            &[8, 1, b'g', 0, 2, b's', b's', 0],
        ]
        .concat();
        let head = [b'l', 1, 0, 1, 24, 0, 0, 0, 5, 0, 0, 0, fields.len() as u8, 0, 0, 0];
        assert_eq!(bytes[..16], head);
        assert_eq!(bytes[16..16 + fields.len()], fields);
        assert_eq!(bytes[16 + fields.len()..], body.bytes);
        assert_eq!(length(&bytes), Ok(Some(bytes.len())));
    }

    #[test]
    fn arrays_count_their_elements_without_the_padding_before() {
        let mut writer = Writer::default();
        writer.array(8, |array| array.u64(9));
        assert_eq!(writer.bytes, [8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        let mut empty = Writer::default();
        empty.array(8, |_| {});
        assert_eq!(empty.bytes, [0; 8]);
    }

    #[test]
    fn replies_errors_and_ended_jobs_are_told_apart() {
        let reply = |fields: &mut Writer| {
            // systemd names itself as the sender, and not by a unique name.
            field(fields, 7, "s", |f| f.text("org.freedesktop.systemd1"));
            field(fields, REPLY_SERIAL, "u", |f| f.u32(3));
        };
        let read_back = |bytes: &[u8]| {
            assert_eq!(length(bytes), Ok(Some(bytes.len())));
            read(bytes)
        };
        let done = incoming(METHOD_RETURN, reply, &Writer::default());
        assert_eq!(read_back(&done), Ok(Incoming::Return { serial: 3 }));

        let mut text = Writer::default();
        text.text("Unit x not loaded.");
        let fields = |fields: &mut Writer| {
            field(fields, ERROR_NAME, "s", |f| f.text("a.NoSuchUnit"));
            reply(fields);
        };
        let expected =
            Incoming::Error { serial: 3, name: "a.NoSuchUnit".into(), text: "Unit x not loaded.".into() };
        assert_eq!(read_back(&incoming(ERROR, fields, &text)), Ok(expected));

        let mut removed = Writer::default();
        removed.u32(8);
        removed.text("/org/freedesktop/systemd1/job/8");
        removed.text("crisp-x.scope");
        removed.text("done");
        let fields = |fields: &mut Writer| field(fields, MEMBER, "s", |f| f.text("JobRemoved"));
        let expected = Incoming::JobRemoved { unit: "crisp-x.scope".into(), result: "done".into() };
        let bytes = incoming(SIGNAL, fields, &removed);
        assert_eq!(read_back(&bytes), Ok(expected));
        for cut in 0..bytes.len() {
            // Never a panic, never something else than what it was.
            assert!(!matches!(read(&bytes[..cut]), Ok(Incoming::Return { .. } | Incoming::Error { .. })));
        }
        let other = |fields: &mut Writer| field(fields, MEMBER, "s", |f| f.text("UnitNew"));
        assert_eq!(read_back(&incoming(SIGNAL, other, &text)), Ok(Incoming::Other));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert_eq!(length(&[b'l'; 15]), Ok(None));
        assert_eq!(length(&[b'B'; 16]), Err(Malformed("not little-endian")));
        let mut huge = [0xff; 16];
        huge[0] = b'l';
        assert_eq!(length(&huge), Err(Malformed("too long")));
    }
}
