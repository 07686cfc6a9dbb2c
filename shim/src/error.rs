//! Why a request did not succeed: a class, which decides the gRPC code, and one line of text.
//!
//! An error is cloned to every caller that joined the same operation, so it holds text and no sources.

use std::fmt;

/// In front of what is wrong with a volume that is an image (cri-api's `ErrImageVolumeMountFailed`).
pub const IMAGE_VOLUME: &str = "ImageVolumeMountFailed: ";

/// Stages are put behind these.
const KEYWORDS: [&str; 1] = [IMAGE_VOLUME];

/// What kind of failure: decides the gRPC code (see `server::status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// No such sandbox, container or image.
    NotFound,
    /// The name is taken.
    Exists,
    /// Not in a state in which this can be done.
    Precondition,
    /// The request itself is wrong.
    Invalid,
    /// The object cannot be asked now.
    Unavailable,
    /// Not there (yet).
    Unimplemented,
    /// There are too many of them already; later there may be room.
    Exhausted,
    /// A time limit that the request set has passed.
    DeadlineExceeded,
    /// Anything else. CRI clients match on the text of these.
    Unknown,
}

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct RequestError {
    /// Decides the gRPC code.
    pub class: Class,
    /// Lower-case; names stage, object and cause.
    pub text: String,
}

impl RequestError {
    /// An error of a given class.
    pub fn new(class: Class, text: impl Into<String>) -> Self {
        Self { class, text: text.into() }
    }

    /// There is no `kind` of that name.
    pub fn not_found(kind: &str, name: &str) -> Self {
        Self::new(Class::NotFound, format!("{kind} {name:?} not found"))
    }

    /// The request is wrong.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(Class::Invalid, text)
    }

    /// A field that crisp does not support yet: never dropped silently.
    pub fn unsupported(field: &str) -> Self {
        Self::new(Class::Unimplemented, format!("{field}: not supported by crisp yet"))
    }

    /// Not now.
    pub fn precondition(text: impl Into<String>) -> Self {
        Self::new(Class::Precondition, text)
    }

    /// Anything else.
    pub fn unknown(text: impl Into<String>) -> Self {
        Self::new(Class::Unknown, text)
    }

    /// The same error with a word in front that CRI clients look for at the very beginning of the text.
    #[must_use]
    pub fn keyword(mut self, keyword: &'static str) -> Self {
        if !self.text.starts_with(keyword) {
            self.text = format!("{keyword}{}", self.text);
        }
        self
    }

    /// The same error with the stage in front, but behind a keyword.
    #[must_use]
    pub fn at(mut self, stage: impl fmt::Display) -> Self {
        let keyword = KEYWORDS.into_iter().find(|keyword| self.text.starts_with(keyword)).unwrap_or_default();
        self.text = format!("{keyword}{stage}: {}", self.text.strip_prefix(keyword).unwrap_or_default());
        self
    }
}

/// Puts a stage in front of any error and makes it a [`RequestError`].
pub trait Stage<T> {
    /// `stage` names what was being done to what.
    ///
    /// # Errors
    /// The error it was called on, with its whole chain of sources as text.
    fn stage(self, stage: impl fmt::Display) -> Result<T, RequestError>;
}

impl<T, E: std::error::Error> Stage<T> for Result<T, E> {
    fn stage(self, stage: impl fmt::Display) -> Result<T, RequestError> {
        self.map_err(|error| RequestError::unknown(format!("{stage}: {}", chain(&error))))
    }
}

/// An error and its sources, outermost first, without repeating a source that the outer text quotes already.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}
