//! The grammar of SELinux options. What they mean on this host is `crate::lsm`'s to say.

use crisp_proto::runtime::v1 as cri;

use crate::error::RequestError;

/// Longest part of a label, bytes.
const PART_BYTES: usize = 255;

/// Checks user, role, type and level; an empty part means the default.
///
/// # Errors
/// `Invalid`, naming the part.
pub fn check(field: &str, options: Option<&cri::SeLinuxOption>) -> Result<(), RequestError> {
    let Some(options) = options else { return Ok(()) };
    for (part, value) in [("user", &options.user), ("role", &options.role), ("type", &options.r#type)] {
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if value.len() > PART_BYTES || !value.chars().all(word) {
            return Err(RequestError::invalid(format!("{field}.{part}: {value:?} is not one word")));
        }
    }
    let level = &options.level;
    if level.is_empty() || (level.len() <= PART_BYTES && is_range(level)) {
        return Ok(());
    }
    Err(RequestError::invalid(format!(
        "{field}.level: {level:?} is not a level such as s0, s0:c1,c2 or s0-s0:c0.c1023"
    )))
}

/// One level, or a low and a high one.
fn is_range(text: &str) -> bool {
    text.split('-').count() <= 2 && text.split('-').all(is_level)
}

/// `sN`, or `sN:` and categories: `cN` and `cN.cN`, with commas between.
fn is_level(text: &str) -> bool {
    let (sensitivity, categories) = match text.split_once(':') {
        Some((sensitivity, categories)) => (sensitivity, Some(categories)),
        None => (text, None),
    };
    let category = |item: &str| item.split('.').count() <= 2 && item.split('.').all(|one| numbered(one, 'c'));
    numbered(sensitivity, 's') && categories.is_none_or(|list| list.split(',').all(category))
}

fn numbered(text: &str, letter: char) -> bool {
    text.strip_prefix(letter)
        .is_some_and(|digits| (1..=4).contains(&digits.len()) && digits.bytes().all(|c| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r36_labels_with_bad_characters_are_refused_with_their_field() {
        let option = |user: &str, role: &str, kind: &str, level: &str| cri::SeLinuxOption {
            user: user.into(),
            role: role.into(),
            r#type: kind.into(),
            level: level.into(),
        };
        for good in ["", "s0", "s15", "s0:c1", "s0:c1,c2", "s0:c0.c1023", "s0-s0:c0.c1023,c5"] {
            check("x", Some(&option("system_u", "system_r", "container_t", good))).unwrap();
        }
        for bad in
            ["0", "s", "s0:", "s0:c", "s0:1", "s0:c1,", "s0-s1-s2", "s0 ", "s0\n", "s0:c1;x", "s0:c1.c2.c3"]
        {
            let error = check("x", Some(&option("", "", "", bad))).unwrap_err().to_string();
            assert!(error.contains("x.level"), "{bad:?}: {error}");
        }
        for (options, part) in [
            (option("a:b", "", "", ""), "x.user"),
            (option("", "a b", "", ""), "x.role"),
            (option("", "", "a\nb", ""), "x.type"),
            (option("", "", &"t".repeat(256), ""), "x.type"),
        ] {
            let error = check("x", Some(&options)).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        check("x", None).unwrap();
    }
}
