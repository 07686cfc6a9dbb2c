//! Which of an index's manifests runs here. Purpose: the ordered list of platforms this machine can run
//! and the choice among descriptors. Knows nothing of how documents are fetched.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::document::Descriptor;

/// An operating system, architecture and variant in Go's words (`linux`, `amd64`, `v3`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, `arm`, …
    pub architecture: String,
    /// Micro-architecture level, empty for the base one.
    #[serde(default)]
    pub variant: String,
}

impl Platform {
    /// The platform of this machine with the highest variant its processor has.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", amd64_level()),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", ""),
            "arm" => ("arm", "v7"),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Self::linux(architecture, variant)
    }

    fn linux(architecture: &str, variant: &str) -> Self {
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.to_owned() }
    }

    /// What this platform can run, best first: amd64 down its micro-levels and then 386, arm64 down to
    /// 32-bit arm, arm down its versions.
    #[must_use]
    pub fn candidates(&self) -> Vec<Self> {
        let own = self.normal();
        let mut out = vec![own.clone()];
        let mut add = |architecture: &str, variants: &[&str]| {
            for variant in variants {
                let next = Self { os: own.os.clone(), ..Self::linux(architecture, variant) };
                if !out.contains(&next) {
                    out.push(next);
                }
            }
        };
        match (own.architecture.as_str(), own.variant.as_str()) {
            ("amd64", "v4") => add("amd64", &["v3", "v2", ""]),
            ("amd64", "v3") => add("amd64", &["v2", ""]),
            ("amd64", _) => add("amd64", &[""]),
            ("arm64", _) => add("arm64", &[""]),
            ("arm", "v7") => add("arm", &["v6", "v5"]),
            ("arm", "v6") => add("arm", &["v5"]),
            _ => {}
        }
        match own.architecture.as_str() {
            "amd64" => add("386", &[""]),
            "arm64" => add("arm", &["v8", "v7", "v6", "v5"]),
            _ => {}
        }
        out
    }

    /// Whether something built for `other` runs on `self`.
    #[must_use]
    pub fn runs(&self, other: &Self) -> bool {
        let other = other.normal();
        self.candidates().contains(&other)
    }

    /// The first descriptor, in this platform's order of preference, that names a platform it can run.
    /// Attestations (`unknown/unknown`) never match.
    pub(crate) fn choose<'a>(&self, descriptors: &'a [Descriptor]) -> Option<&'a Descriptor> {
        self.candidates().iter().find_map(|candidate| {
            descriptors
                .iter()
                .find(|d| d.platform.as_ref().is_some_and(|platform| platform.normal() == *candidate))
        })
    }

    /// The base variants have two spellings; one is kept.
    fn normal(&self) -> Self {
        let variant = match (self.architecture.as_str(), self.variant.as_str()) {
            ("amd64", "v1") | ("arm64", "v8" | "8") => "",
            ("arm", "") => "v7",
            (_, variant) => variant,
        };
        let architecture = match self.architecture.as_str() {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            "i386" | "i686" => "386",
            other => other,
        };
        Self {
            os: self.os.to_ascii_lowercase(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

/// The x86-64 psABI level of this processor.
#[cfg(target_arch = "x86_64")]
fn amd64_level() -> &'static str {
    let v2 = is_x86_feature_detected!("sse4.2")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("cmpxchg16b");
    let v3 = v2
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("movbe");
    let v4 = v3
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (v2, v3, v4) {
        (_, _, true) => "v4",
        (_, true, _) => "v3",
        (true, ..) => "v2",
        _ => "",
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_level() -> &'static str {
    ""
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;

    fn entry(architecture: &str, variant: &str) -> Descriptor {
        Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest: Digest::of(format!("{architecture}{variant}").as_bytes()),
            size: 1,
            platform: Some(Platform { os: "linux".into(), ..Platform::linux(architecture, variant) }),
            annotations: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn the_best_level_wins_and_386_comes_last() {
        let list = [entry("386", ""), entry("amd64", ""), entry("amd64", "v2"), entry("amd64", "v3")];
        let pick = |variant| Platform::linux("amd64", variant).choose(&list).unwrap().digest;
        assert_eq!(pick("v4"), list[3].digest);
        assert_eq!(pick("v2"), list[2].digest);
        assert_eq!(pick(""), list[1].digest);
        assert_eq!(Platform::linux("amd64", "").choose(&list[..1]).unwrap().digest, list[0].digest);
    }

    #[test]
    fn attestations_and_other_systems_never_match() {
        let mut windows = entry("amd64", "");
        windows.platform = Some(Platform { os: "windows".into(), ..Platform::linux("amd64", "") });
        let unknown = Descriptor {
            platform: Some(Platform { os: "unknown".into(), ..Platform::linux("unknown", "") }),
            ..entry("amd64", "")
        };
        assert!(Platform::host().choose(&[windows, unknown]).is_none());
    }

    #[test]
    fn i09_an_arm_image_does_not_run_on_amd64() {
        assert!(!Platform::linux("amd64", "v4").runs(&Platform::linux("arm64", "v8")));
        assert!(Platform::linux("arm64", "").runs(&Platform::linux("arm", "v7")));
        assert!(Platform::linux("amd64", "").runs(&Platform::linux("amd64", "v1")));
    }
}
