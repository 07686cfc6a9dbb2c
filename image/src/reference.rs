//! Image references, normalised the way docker does it. Purpose: text from a pod becomes a checked
//! `domain/path[:tag][@digest]`. Knows nothing of registries, endpoints or what is stored.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// A normalised reference: `docker.io/library/busybox:1.36`, `host:5000/a/b@sha256:…`.
///
/// At least one of tag and digest is always there. When both are, the digest decides what is pulled and
/// the tag is only informative.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a [`Reference`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("image reference is empty")]
    Empty,
    /// The name is longer than 255 characters (distribution-spec).
    #[error("image name of {0} characters is longer than 255")]
    TooLong(usize),
    /// 64 hexadecimal digits are an image id and can never be a name.
    #[error("{0:?} is an image id, not a name")]
    Id(String),
    /// The domain does not follow the grammar.
    #[error("{domain:?} in image reference {text:?} is not a host name")]
    Domain {
        /// What was given.
        text: String,
        /// The part at fault.
        domain: String,
    },
    /// A path component does not follow the grammar.
    #[error(
        "image reference {text:?}: repository name {path:?} is not lower-case letters, digits and separators"
    )]
    Path {
        /// What was given.
        text: String,
        /// The part at fault.
        path: String,
    },
    /// The tag does not follow the grammar.
    #[error("image reference {text:?}: {tag:?} is not a tag")]
    Tag {
        /// What was given.
        text: String,
        /// The part at fault.
        tag: String,
    },
    /// The digest does not follow the grammar.
    #[error("image reference {text:?}")]
    Digest {
        /// What was given.
        text: String,
        /// Why.
        #[source]
        source: DigestError,
    },
}

const DOCKER_HUB: &str = "docker.io";
const NAME_MAX: usize = 255;

impl Reference {
    /// Parses and normalises `text`: a missing domain becomes `docker.io`, a single component there gets
    /// `library/`, and without tag and digest the tag is `latest`.
    ///
    /// # Errors
    /// [`ReferenceError`] names the part that does not follow the grammar of distribution/reference.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let shown = || text.chars().take(300).collect::<String>();
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest =
                    digest.parse().map_err(|source| ReferenceError::Digest { text: shown(), source })?;
                (rest, Some(digest))
            }
        };
        if Digest::from_hex(rest).is_ok() {
            return Err(ReferenceError::Id(rest.to_owned()));
        }
        let (domain, remainder) = split_domain(rest);
        // A colon after the last slash starts the tag; the port was taken off with the domain.
        let (path, tag) = match remainder.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (remainder, None),
        };
        if !is_domain(&domain) {
            return Err(ReferenceError::Domain { text: shown(), domain });
        }
        if !path.split('/').all(is_path_component) {
            return Err(ReferenceError::Path { text: shown(), path: path.chars().take(300).collect() });
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag { text: shown(), tag: tag.chars().take(140).collect() });
        }
        let path = if domain == DOCKER_HUB && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        let length = domain.len() + 1 + path.len();
        if length > NAME_MAX {
            return Err(ReferenceError::TooLong(length));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { domain, path, tag, digest })
    }

    /// Registry host with port, `docker.io` for Docker Hub (its API host is another one).
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Repository inside the registry, `library/busybox`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, if one was given or `latest` was implied.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// `domain/path`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// `name:tag` for a reference without a digest: what goes into an image's tags.
    #[must_use]
    pub fn tagged(&self) -> Option<String> {
        match (&self.tag, self.digest) {
            (Some(tag), None) => Some(format!("{}:{tag}", self.name())),
            _ => None,
        }
    }

    /// `name@digest` for the given digest: what goes into an image's repo digests.
    #[must_use]
    pub fn pinned_to(&self, digest: Digest) -> String {
        format!("{}@{digest}", self.name())
    }

    /// The one key under which the store looks this reference up: by digest if there is one.
    #[must_use]
    pub(crate) fn key(&self) -> String {
        match self.digest {
            Some(digest) => self.pinned_to(digest),
            None => self.to_string(),
        }
    }
}

/// The first component is a domain if it has a dot, a colon or an upper-case letter, or is `localhost`.
fn split_domain(rest: &str) -> (String, &str) {
    match rest.split_once('/') {
        Some((first, remainder))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.chars().any(|c| c.is_ascii_uppercase()) =>
        {
            // The old name of Docker Hub's index.
            let domain = if first == "index.docker.io" { DOCKER_HUB } else { first };
            (domain.to_owned(), remainder)
        }
        _ => (DOCKER_HUB.to_owned(), rest),
    }
}

fn is_domain(domain: &str) -> bool {
    if let Some(rest) = domain.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (host, port) = match domain.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (domain, None),
    };
    port.is_none_or(is_port) && host.split('.').all(is_label)
}

fn is_port(port: &str) -> bool {
    !port.is_empty()
        && port.len() <= 5
        && port.bytes().all(|b| b.is_ascii_digit())
        && port.parse::<u16>().is_ok()
}

fn is_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
}

/// Runs of `[a-z0-9]` joined by one of `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().copied().is_some_and(plain) || !bytes.last().copied().is_some_and(plain) {
        return false;
    }
    component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&tag.len())
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn normal(text: &str) -> String {
        Reference::parse(text).unwrap_or_else(|e| panic!("{text}: {e}")).to_string()
    }

    #[test]
    fn names_are_normalised_the_docker_way() {
        for (given, expected) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("Upper/app", "Upper/app:latest"),
            ("a--b/c__d/e.f", "docker.io/a--b/c__d/e.f:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
        ] {
            assert_eq!(normal(given), expected);
        }
        assert_eq!(
            normal(&format!("busybox@sha256:{HEX}")),
            format!("docker.io/library/busybox@sha256:{HEX}")
        );
    }

    #[test]
    fn a_digest_wins_over_the_tag_beside_it() {
        let both = Reference::parse(&format!("busybox:1@sha256:{HEX}")).unwrap();
        assert_eq!(both.tag(), Some("1"));
        assert_eq!(both.tagged(), None);
        assert_eq!(both.key(), format!("docker.io/library/busybox@sha256:{HEX}"));
    }

    #[test]
    fn i13_what_is_no_reference_is_refused() {
        for bad in [
            "",
            " ",
            "UPPER",
            "a/UPPER",
            "a//b",
            "/a",
            "a/",
            "a:",
            ":tag",
            "a:b:c",
            "a@",
            "a b",
            "a\n",
            "é",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a:.tag",
            "host:99999/x",
            "host:/x",
            "ho_st.com/x",
            "../x",
            "a/../b",
            "-x.com/a",
            "a@sha256:../../../x",
            "a@md5:d41d8cd98f00b204e9800998ecf8427e",
            HEX,
            "[zz]/x",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(Reference::parse(&format!("a:{}", "t".repeat(129))).is_err());
        assert!(Reference::parse(&"a/".repeat(200)).is_err());
        assert!(matches!(Reference::parse(&"a".repeat(300)), Err(ReferenceError::TooLong(_))));
        assert!(matches!(Reference::parse(HEX), Err(ReferenceError::Id(_))));
    }

    proptest! {
        #[test]
        fn the_normal_form_is_a_fixed_point(text in "([a-zA-Z0-9.:-]{1,12}/)?[a-z0-9._/-]{1,20}(:[A-Za-z0-9_.-]{1,9})?") {
            if let Ok(once) = Reference::parse(&text) {
                let twice = Reference::parse(&once.to_string()).unwrap();
                prop_assert_eq!(&once, &twice);
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic_or_keep_a_path_trick(text in "\\PC{0,80}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert!(reference.path().split('/').all(|c| c != ".." && c != "." && !c.is_empty()));
            }
        }
    }
}
