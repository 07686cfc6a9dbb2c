//! Which differences are intended: a reason has patterns for what it explains, and a line in docs/differences.md. One that
//! explains nothing any more, or that the page does not have, is a failure.
//!
//! Must not know: which reasons there are.

use std::collections::BTreeSet;

use super::compare::Difference;
use super::reasons::REASONS;

/// Why the two may differ.
#[derive(Clone, Copy, Debug)]
pub struct Reason {
    /// One sentence, the last cell of a row in docs/differences.md.
    pub why: &'static str,
    /// What it explains.
    pub seen: &'static [Seen],
}

/// A difference that is explained. In each text `*` stands for anything; a value of `-` is none.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Names of scenarios, separated by blanks.
    pub scenarios: &'static str,
    /// Name of the fact.
    pub name: &'static str,
    /// crisp's value.
    pub crisp: &'static str,
    /// containerd's value.
    pub containerd: &'static str,
}

impl Seen {
    fn matches(&self, scenario: &str, difference: &Difference) -> bool {
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        self.scenarios.split(' ').any(|pattern| glob(pattern, scenario))
            && glob(self.name, &difference.name)
            && glob(self.crisp, &value(&difference.crisp))
            && glob(self.containerd, &value(&difference.containerd))
    }
}

/// The reasons, and which of their patterns have explained something so far.
#[derive(Debug)]
pub struct Ledger {
    used: Vec<Vec<bool>>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { used: REASONS.iter().map(|reason| vec![false; reason.seen.len()]).collect() }
    }
}

impl Ledger {
    /// The reason for a difference.
    pub fn explain(&mut self, scenario: &str, difference: &Difference) -> Option<&'static str> {
        let mut found = None;
        for (reason, used) in REASONS.iter().zip(&mut self.used) {
            for (seen, used) in reason.seen.iter().zip(used) {
                if seen.matches(scenario, difference) {
                    *used = true;
                    found = found.or(Some(reason.why));
                }
            }
        }
        found
    }

    /// The patterns that have explained nothing, each with its reason.
    pub fn unused(&self) -> Vec<String> {
        let all = REASONS.iter().zip(&self.used).flat_map(|(reason, used)| {
            reason.seen.iter().zip(used).map(move |(seen, used)| (reason.why, seen, used))
        });
        all.filter(|(_, _, used)| !**used).map(|(why, seen, _)| format!("{seen:?}, of {why:?}")).collect()
    }
}

/// Heading of the page's section.
const HEADING: &str = "## Side by side with containerd";

/// What the page says and the reasons do not, and the other way round.
pub fn compare_with_page(page: &str) -> Vec<String> {
    let Some((_, section)) = page.split_once(HEADING) else {
        return vec![format!("docs/differences.md has no section {HEADING:?}")];
    };
    let section = section.split("\n## ").next().unwrap_or(section);
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let written: BTreeSet<&str> = rows.skip(2).filter_map(|row| row.rsplit(" | ").next()).collect();
    let given: BTreeSet<&str> = REASONS.iter().map(|reason| reason.why).collect();
    let missing = given.difference(&written).map(|why| format!("docs/differences.md does not say: {why}"));
    let stale =
        written.difference(&given).map(|why| format!("no reason for what docs/differences.md says: {why}"));
    missing.chain(stale).collect()
}

/// Whether `text` is as `pattern` says, in which `*` stands for any number of characters.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts = rest.split('*').collect::<Vec<_>>();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text) in
            [("a", "a"), ("*", ""), ("a*", "abc"), ("*c", "abc"), ("a*c", "abc"), ("a*b*d", "axbxd")]
        {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a", "ab"), ("a*c", "ab"), ("ab*b", "ab"), ("*b*d", "abc"), ("", "a")] {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn the_page_says_every_reason_and_no_other() {
        let page = crate::place::top().join("docs/differences.md");
        let found = compare_with_page(&fs::read_to_string(page).unwrap());
        assert!(found.is_empty(), "{}", found.join("\n"));
    }

    #[test]
    fn a_reason_that_the_page_lacks_is_found_and_so_is_a_row_without_one() {
        let page = format!("{HEADING}\n\n| a | b |\n| --- | --- |\n| x | made up |\n\n## Next\n| y | z |\n");
        let found = compare_with_page(&page);
        assert_eq!(found.len(), REASONS.len() + 1, "{found:?}");
        assert!(found.iter().any(|one| one.ends_with("made up")), "{found:?}");
        assert_eq!(compare_with_page("nothing").len(), 1);
    }

    #[test]
    fn no_reason_is_given_twice_and_none_is_without_a_pattern() {
        let all: BTreeSet<_> = REASONS.iter().map(|reason| reason.why).collect();
        assert_eq!(all.len(), REASONS.len());
        assert!(REASONS.iter().all(|reason| !reason.seen.is_empty() && reason.why.ends_with('.')));
    }
}
