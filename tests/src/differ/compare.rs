//! What two observations of the same scenario do not agree on.
//!
//! Must not know: what the facts are about.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What was seen of one container: facts by name, such as `init mount /proc`.
pub type Facts = BTreeMap<String, String>;

/// How the names of facts about requests begin.
pub const REQUEST: &str = "request ";

/// One fact that the two see differently, or that only one of them sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Name of the fact.
    pub name: String,
    /// crisp's.
    pub crisp: Option<String>,
    /// containerd's.
    pub containerd: Option<String>,
}

/// All differences, in the order of their names. Where a request was refused on one side only, there is nothing else to
/// compare.
pub fn differences(crisp: &Facts, containerd: &Facts) -> Vec<Difference> {
    let names: BTreeSet<&String> = crisp.keys().chain(containerd.keys()).collect();
    let pairs = names.into_iter().map(|name| Difference {
        name: name.clone(),
        crisp: crisp.get(name).cloned(),
        containerd: containerd.get(name).cloned(),
    });
    let (requests, rest): (Vec<_>, Vec<_>) =
        pairs.filter(|pair| pair.crisp != pair.containerd).partition(|pair| pair.name.starts_with(REQUEST));
    if requests.is_empty() { rest } else { requests }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        write!(f, "  {}", self.name)?;
        write!(f, "\n      crisp       {}", show(&self.crisp))?;
        write!(f, "\n      containerd  {}", show(&self.containerd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(list: &[(&str, &str)]) -> Facts {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_fact_of_one_side_only_is_a_difference_and_an_equal_one_is_none() {
        let found = differences(
            &facts(&[("a", "1"), ("b", "1"), ("c", "1")]),
            &facts(&[("a", "1"), ("b", "2"), ("d", "2")]),
        );
        let names: Vec<_> = found.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["b", "c", "d"]);
        let refused = differences(&facts(&[("a", "1"), ("request x", "ok")]), &facts(&[("request x", "no")]));
        assert_eq!(refused.len(), 1);
        assert_eq!(found[1].to_string(), "  c\n      crisp       1\n      containerd  -");
    }
}
