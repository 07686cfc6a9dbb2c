//! Versions of the CNI specification, in their order.

use std::fmt;

use serde_json::{Map, Value};

/// A version that is spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.1
    V0_3_1,
    /// 0.4.0: CHECK, and DEL gets the result of ADD.
    V0_4_0,
    /// 1.0.0
    V1_0_0,
    /// 1.1.0: STATUS and GC.
    V1_1_0,
}

impl Version {
    /// All of them, the oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The version of this name, if it is one of [`Self::ALL`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.name() == text)
    }

    /// As it stands in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version of a network list: the highest known one of `cniVersions` and `cniVersion`.
    ///
    /// # Errors
    /// What stands there instead.
    pub(super) fn of_list(list: &Map<String, Value>) -> Result<Self, String> {
        let one = list.get("cniVersion").into_iter();
        let many = list.get("cniVersions").and_then(Value::as_array).into_iter().flatten();
        let named: Vec<_> = one.chain(many).map(|value| value.as_str().unwrap_or("(no text)")).collect();
        named.iter().filter_map(|name| Self::parse(name)).max().ok_or_else(|| match named.is_empty() {
            true => "cniVersion is missing".to_owned(),
            false => {
                format!("cniVersion {} is none of {}", named.join(", "), Self::ALL.map(Self::name).join(", "))
            }
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
