//! The size of a pod's `/dev/shm`. CRI has no field for it; CRI-O's annotation is what there is.

use crisp_proto::runtime::v1 as cri;

use crate::error::RequestError;

/// Asks for another size: a Kubernetes quantity, such as `256Mi`.
const ANNOTATION: &str = "shm-size.crio.io";
/// What a pod has that does not ask: 64 MiB, as with other runtimes.
const DEFAULT: u64 = 64 << 20;

/// Factors of a quantity's suffixes.
const SUFFIXES: [(&str, u64); 9] = [
    ("", 1),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
];

/// Bytes. What is written there counts as memory of the container that wrote it, whatever the size.
///
/// # Errors
/// `Invalid`, naming the annotation: no size, or one for the host's own `/dev/shm`.
pub(super) fn size(config: &cri::PodSandboxConfig, host_ipc: bool) -> Result<u64, RequestError> {
    let Some(text) = config.annotations.get(ANNOTATION) else { return Ok(DEFAULT) };
    let invalid =
        |reason: &str| RequestError::invalid(format!("annotations[{ANNOTATION}] {text:?}: {reason}"));
    if host_ipc {
        return Err(invalid("the pod uses the host's /dev/shm, which is not its to size"));
    }
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, suffix) = text.split_at(end);
    let factor = SUFFIXES.iter().find(|(known, _)| *known == suffix).map(|(_, factor)| *factor);
    let bytes =
        digits.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    match bytes {
        Some(bytes) if bytes > 0 && bytes <= 1 << 60 => Ok(bytes),
        _ => Err(invalid("not a size such as 256Mi")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Result<u64, RequestError> {
        let annotations = [(ANNOTATION.to_owned(), text.to_owned())].into();
        size(&cri::PodSandboxConfig { annotations, ..Default::default() }, false)
    }

    #[test]
    fn x14_the_size_is_64_mib_or_what_the_annotation_says() {
        assert_eq!(size(&cri::PodSandboxConfig::default(), false), Ok(64 << 20));
        for (text, bytes) in [("1", 1), ("128Mi", 128 << 20), ("2G", 2_000_000_000), ("3Ti", 3 << 40)] {
            assert_eq!(asked(text), Ok(bytes));
        }
        for text in [
            "",
            "0",
            "-1",
            "64m",
            "64MB",
            "1.5Gi",
            " 64Mi",
            "64Mi,size=1",
            "99999999999999999999",
            "9999999Ti",
            "Mi",
        ] {
            assert!(asked(text).unwrap_err().text.contains(&format!("{text:?}")), "{text}");
        }
        let annotations = [(ANNOTATION.to_owned(), "1Mi".to_owned())].into();
        let error = size(&cri::PodSandboxConfig { annotations, ..Default::default() }, true).unwrap_err();
        assert!(error.text.contains(ANNOTATION), "{error}");
        // Only the exact key counts.
        let annotations = [(format!("{ANNOTATION}/x"), "nonsense".to_owned())].into();
        assert!(size(&cri::PodSandboxConfig { annotations, ..Default::default() }, false).is_ok());
    }
}
