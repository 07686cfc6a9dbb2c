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
        Class::DeadlineExceeded => Code::DeadlineExceeded,
        Class::Unknown => Code::Unknown,
    }
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Status {
        Status::new(code(error.class), error.text)
    }
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
            (Class::DeadlineExceeded, Code::DeadlineExceeded),
            (Class::Unknown, Code::Unknown),
        ] {
            assert_eq!(Status::from(RequestError::new(class, "x")).code(), want);
        }
    }

    #[test]
    fn removing_what_is_not_there_is_fine_but_other_errors_are_not() {
        assert!(absent_is_fine(Err(RequestError::not_found("container", "x"))).is_ok());
        assert!(absent_is_fine(Err(RequestError::unknown("disk"))).is_err());
    }
}
