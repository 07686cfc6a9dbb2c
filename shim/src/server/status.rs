//! The one table from error classes to gRPC codes.

use tonic::{Code, Status};

use crate::error::{Class, RequestError};

/// The gRPC code of a class. Anything that CRI clients match by its text is `Unknown`: cri-client strips the
/// envelope of that code only.
#[must_use]
pub fn code(class: Class) -> Code {
    match class {
        Class::NotFound => Code::NotFound,
        Class::Exists => Code::AlreadyExists,
        Class::Precondition => Code::FailedPrecondition,
        Class::Invalid => Code::InvalidArgument,
        Class::Unavailable => Code::Unavailable,
        Class::Unimplemented => Code::Unimplemented,
        Class::Exhausted => Code::ResourceExhausted,
        Class::DeadlineExceeded => Code::DeadlineExceeded,
        Class::Unknown => Code::Unknown,
    }
}

/// How many bytes of an error's text are kept at its beginning and at its end. It travels as an HTTP/2 header, three
/// bytes for one at worst, and clients take 16 KiB of headers; the text may quote what the client has sent.
const KEPT_BYTES: (usize, usize) = (3 << 10, 1 << 10);

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Status {
        Status::new(code(error.class), shortened(error.text))
    }
}

/// The stage at the beginning and the cause at the end stay; the middle of a long text goes.
fn shortened(text: String) -> String {
    let (head, tail) = KEPT_BYTES;
    if text.len() <= head + tail {
        return text;
    }
    let (head, tail) = (text.floor_char_boundary(head), text.ceil_char_boundary(text.len() - tail));
    format!("{} [{} bytes left out] {}", &text[..head], tail - head, &text[tail..])
}

/// CRI: stopping and removing what is not there is success.
///
/// # Errors
/// Any other error.
pub fn absent_is_fine(result: Result<(), RequestError>) -> Result<(), RequestError> {
    match result {
        Err(error) if error.class == Class::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_the_code_that_cri_clients_expect() {
        for (class, want) in [
            (Class::NotFound, Code::NotFound),
            (Class::Exists, Code::AlreadyExists),
            (Class::Precondition, Code::FailedPrecondition),
            (Class::Invalid, Code::InvalidArgument),
            (Class::Unavailable, Code::Unavailable),
            (Class::Unimplemented, Code::Unimplemented),
            (Class::Exhausted, Code::ResourceExhausted),
            (Class::DeadlineExceeded, Code::DeadlineExceeded),
            (Class::Unknown, Code::Unknown),
        ] {
            assert_eq!(Status::from(RequestError::new(class, "x")).code(), want);
        }
    }

    #[test]
    fn a_long_text_keeps_its_ends_and_fits_a_header() {
        for filling in ["x", "\u{fc}", "\u{1f980}"] {
            let text = format!("stage: {}: cause", filling.repeat(1 << 20));
            let status = Status::from(RequestError::unknown(text));
            let message = status.message();
            assert!(message.starts_with("stage: ") && message.ends_with(": cause"), "{message}");
            assert!(message.len() < 5 << 10);
        }
        assert_eq!(Status::from(RequestError::unknown("short")).message(), "short");
    }

    #[test]
    fn removing_what_is_not_there_is_fine_but_other_errors_are_not() {
        assert!(absent_is_fine(Err(RequestError::not_found("container", "x"))).is_ok());
        assert!(absent_is_fine(Err(RequestError::unknown("disk"))).is_err());
    }
}
