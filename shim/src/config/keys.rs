//! The macro that makes structs, defaults, reader and commented text from one table of keys.
//!
//! Must not know any key.

use serde::{Deserialize, Serialize};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::nearest;

/// Declares a struct of keys. Each key is `/// description`, `name: type = default`; sections are structs made the
/// same way. The descriptions become documentation and the comments of the default file.
macro_rules! keys {
    (
        $(#[doc = $about:literal])+
        pub struct $Name:ident {
            $( $(#[doc = $doc:literal])+ $key:ident : $Type:ty = $default:expr, )*
            $( sections { $( $(#[doc = $section_doc:literal])+ $section:ident : $Section:ty, )* } )?
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
        pub struct $Name {
            $( $(#[doc = $doc])+ pub $key: $Type, )*
            $( $( $(#[doc = $section_doc])+ pub $section: $Section, )* )?
        }

        impl Default for $Name {
            fn default() -> Self {
                Self {
                    $( $key: $default, )*
                    $( $( $section: Default::default(), )* )?
                }
            }
        }

        impl $Name {
            /// Names of all keys and sections.
            const NAMES: &[&str] = &[
                $( stringify!($key), )*
                $( $( stringify!($section), )* )?
            ];

            /// Takes what `table` sets; notes what cannot be taken.
            fn take(&mut self, table: DeTable<'_>, place: &Place<'_>, problems: &mut Vec<String>) {
                for (key, value) in table {
                    match key.get_ref().as_ref() {
                        $( stringify!($key) => place.read(&mut self.$key, &key, value, problems), )*
                        $( $( stringify!($section) => {
                            if let Some((table, place)) = place.section(&key, value, problems) {
                                self.$section.take(table, &place, problems);
                            }
                        } )* )?
                        _ => problems.push(place.unknown(&key, Self::NAMES)),
                    }
                }
            }

            /// Appends every key with its description and its value.
            fn describe(&self, prefix: &str, text: &mut String) {
                $( keys::describe_key(text, &[$($doc),+], stringify!($key), &self.$key); )*
                $( $(
                    let name = format!("{prefix}{}", stringify!($section));
                    keys::describe_section(text, &[$($section_doc),+], &name);
                    self.$section.describe(&format!("{name}."), text);
                )* )?
                let _ = prefix;
            }
        }
    };
}
pub(super) use keys;

/// Where in the file a table is.
#[derive(Debug)]
pub(super) struct Place<'a> {
    text: &'a str,
    /// Path of the table with a dot at its end; empty for the top.
    prefix: String,
}

type Key<'i> = Spanned<std::borrow::Cow<'i, str>>;

impl<'a> Place<'a> {
    pub(super) fn top(text: &'a str) -> Self {
        Self { text, prefix: String::new() }
    }

    fn name(&self, key: &Key<'_>) -> String {
        format!("line {}: {}{}", line(self.text, key.span().start), self.prefix, key.get_ref())
    }

    /// Reads one value. On a wrong type the value stays at its default and the problem is noted.
    pub(super) fn read<'i, T: Deserialize<'i>>(
        &self,
        into: &mut T,
        key: &Key<'_>,
        value: Spanned<DeValue<'i>>,
        problems: &mut Vec<String>,
    ) {
        match T::deserialize(toml::de::ValueDeserializer::from(value)) {
            Ok(value) => *into = value,
            Err(error) => problems.push(format!("{}: {}", self.name(key), error.message())),
        }
    }

    /// The table that a section name stands for.
    pub(super) fn section<'i>(
        &self,
        key: &Key<'_>,
        value: Spanned<DeValue<'i>>,
        problems: &mut Vec<String>,
    ) -> Option<(DeTable<'i>, Place<'a>)> {
        match value.into_inner() {
            DeValue::Table(table) => {
                Some((table, Place { text: self.text, prefix: format!("{}{}.", self.prefix, key.get_ref()) }))
            }
            other => {
                problems.push(format!("{}: expected a section, found {}", self.name(key), other.type_str()));
                None
            }
        }
    }

    pub(super) fn unknown(&self, key: &Key<'_>, names: &[&str]) -> String {
        let hint = match nearest(key.get_ref(), names.iter().copied()) {
            Some(name) => format!("; did you mean {}{name}?", self.prefix),
            None => format!("; known here: {}", names.join(", ")),
        };
        format!("{}: unknown key{hint}", self.name(key))
    }
}

/// What is wrong with text that is not TOML.
pub(super) fn syntax_problem(text: &str, error: &toml::de::Error) -> String {
    match error.span() {
        Some(span) => format!("line {}: {}", line(text, span.start), error.message()),
        None => error.message().to_owned(),
    }
}

/// Line number, from 1, of a byte offset.
fn line(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// Appends a key, its description in front.
pub(super) fn describe_key<T: Serialize>(text: &mut String, doc: &[&str], key: &str, value: &T) {
    let mut shown = String::new();
    if value.serialize(toml::ser::ValueSerializer::new(&mut shown)).is_ok() {
        text.push('\n');
        comment(text, doc);
        text.push_str(&format!("{key} = {shown}\n"));
    }
}

/// Appends a section's head, its description in front.
pub(super) fn describe_section(text: &mut String, doc: &[&str], name: &str) {
    text.push('\n');
    comment(text, doc);
    text.push_str(&format!("[{name}]\n"));
}

fn comment(text: &mut String, doc: &[&str]) {
    for line in doc {
        text.push_str(&format!("#{line}\n"));
    }
}
