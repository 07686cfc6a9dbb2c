//! JSON values become types, and everything that does not fit is noted with its path.
//!
//! Must not know any field: those are declared with [`object`].

use std::collections::BTreeMap;

use crisp_shim::config::nearest;
use serde_json::Value;

/// A type that can be read from a value. What cannot be read is noted, and a default stands in for it.
pub(super) trait Read: Sized + Default {
    fn read(value: &Value, path: &str, problems: &mut Vec<String>) -> Self;
}

/// Reads a whole document.
pub(super) fn root<T: Read>(value: &Value, problems: &mut Vec<String>) -> T {
    T::read(value, "", problems)
}

/// Declares an object: `field = "name": Type` for what is supported, names of what is not.
/// `required` in front of a field's name makes its absence a problem.
macro_rules! object {
    (
        $(#[doc = $about:literal])+
        pub(crate) struct $Name:ident {
            $( $(#[doc = $doc:literal])* $field:ident = $key:literal $($required:ident)? : $Type:ty, )*
        }
        unsupported [ $($other:literal),* $(,)? ]
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, Default, PartialEq)]
        pub(crate) struct $Name {
            $( $(#[doc = $doc])* pub(crate) $field: $Type, )*
        }

        impl $crate::manifest::read::Read for $Name {
            fn read(value: &serde_json::Value, path: &str, problems: &mut Vec<String>) -> Self {
                let mut object = Self::default();
                let Some(map) = $crate::manifest::read::map(value, path, problems) else { return object };
                for (key, value) in map.iter().filter(|(_, value)| !value.is_null()) {
                    let path = $crate::manifest::read::join(path, key);
                    match key.as_str() {
                        $( $key => object.$field = $crate::manifest::read::Read::read(value, &path, problems), )*
                        _ => problems.push($crate::manifest::read::stranger(
                            &path, key, &[$($key),*], &[$($other),*],
                        )),
                    }
                }
                $( $( $crate::manifest::read::$required(map, path, $key, problems); )? )*
                object
            }
        }
    };
}
pub(super) use object;

pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn wrong(value: &Value, path: &str, expected: &str, problems: &mut Vec<String>) {
    let found = match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(flag) => format!("the truth value {flag}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the text {text:?}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    problems.push(format!("{path}: expected {expected}, found {found}"));
}

pub(super) fn map<'a>(
    value: &'a Value,
    path: &str,
    problems: &mut Vec<String>,
) -> Option<&'a serde_json::Map<String, Value>> {
    let map = value.as_object();
    if map.is_none() {
        wrong(value, path, "an object", problems);
    }
    map
}

/// Notes a field that must be there and is not.
pub(super) fn required(
    map: &serde_json::Map<String, Value>,
    path: &str,
    key: &str,
    problems: &mut Vec<String>,
) {
    let empty = |value: &Value| value.is_null() || value.as_str() == Some("");
    if map.get(key).is_none_or(empty) {
        problems.push(format!("{}: missing", join(path, key)));
    }
}

/// What to say about a field that is not supported, or not known at all.
pub(super) fn stranger(path: &str, key: &str, supported: &[&str], unsupported: &[&str]) -> String {
    if unsupported.contains(&key) {
        return format!("{path}: not supported");
    }
    match nearest(key, supported.iter().chain(unsupported).copied()) {
        Some(name) => format!("{path}: unknown field; did you mean {name}?"),
        None => format!("{path}: unknown field; known here: {}", supported.join(", ")),
    }
}

impl Read for String {
    fn read(value: &Value, path: &str, problems: &mut Vec<String>) -> Self {
        match value.as_str() {
            Some(text) => text.to_owned(),
            None => {
                wrong(value, path, "text (numbers and truth values need quotes)", problems);
                Self::new()
            }
        }
    }
}

impl Read for bool {
    fn read(value: &Value, path: &str, problems: &mut Vec<String>) -> Self {
        value.as_bool().unwrap_or_else(|| {
            wrong(value, path, "true or false", problems);
            false
        })
    }
}

impl Read for i64 {
    fn read(value: &Value, path: &str, problems: &mut Vec<String>) -> Self {
        value.as_i64().unwrap_or_else(|| {
            wrong(value, path, "a whole number", problems);
            0
        })
    }
}

impl<T: Read> Read for Option<T> {
    fn read(value: &Value, path: &str, problems: &mut Vec<String>) -> Self {
        (!value.is_null()).then(|| T::read(value, path, problems))
    }
}

impl<T: Read> Read for Vec<T> {
    fn read(value: &Value, path: &str, problems: &mut Vec<String>) -> Self {
        match value.as_array() {
            Some(all) => all
                .iter()
                .enumerate()
                .map(|(index, value)| T::read(value, &format!("{path}[{index}]"), problems))
                .collect(),
            None => {
                wrong(value, path, "a list", problems);
                Self::new()
            }
        }
    }
}

impl<T: Read> Read for BTreeMap<String, T> {
    fn read(value: &Value, path: &str, problems: &mut Vec<String>) -> Self {
        let Some(map) = map(value, path, problems) else { return Self::new() };
        map.iter().map(|(key, value)| (key.clone(), T::read(value, &join(path, key), problems))).collect()
    }
}
