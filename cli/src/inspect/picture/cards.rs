//! A card for each kind of namespace that is the same for all containers: the pod's, or the host's.

use super::{
    canvas::{Drawing, Ink, Paint},
    font::Font,
    style::{GAP, HOST_INK, INNER, OF_HOST, OF_POD, POD_INK, SOFT, TEXT},
    words,
};
use crate::inspect::{
    facts::Pod,
    identity::{Identity, Range},
    namespaces::KINDS,
    sharing::{self, Scope},
};

/// Narrowest card; more cards than fit get rows of their own.
const WIDTH_MIN: i32 = 195;
/// Addresses that are shown.
const ADDRESSES_MAX: usize = 4;

/// The cards of all kinds that are `of`, in rows that fill `width`, with the number of cards in each; nothing when there is
/// none.
pub(super) fn rows(pod: &Pod, of: Scope, width: i32) -> Vec<(Drawing, usize)> {
    let kinds: Vec<&str> =
        KINDS.iter().map(|(kind, _)| *kind).filter(|kind| sharing::scope(pod, kind) == Some(of)).collect();
    let mut rows = Vec::new();
    let mut left = &kinds[..];
    while !left.is_empty() {
        let fit = usize::try_from((width + GAP) / (WIDTH_MIN + GAP)).unwrap_or(1).max(1);
        // The first rows have one more where the cards cannot be shared out evenly.
        let (now, later) = left.split_at(left.len().div_ceil(left.len().div_ceil(fit)));
        rows.push((row(pod, of, now, width), now.len()));
        left = later;
    }
    rows
}

fn row(pod: &Pod, of: Scope, kinds: &[&str], width: i32) -> Drawing {
    let count = i32::try_from(kinds.len()).unwrap_or(1);
    let width = (width + GAP) / count - GAP;
    let (paint, ink) = if of == Scope::Host { (OF_HOST, HOST_INK) } else { (OF_POD, POD_INK) };
    let inner: Vec<Drawing> =
        kinds.iter().map(|kind| card(pod, of, kind, (width - 2 * INNER, ink))).collect();
    let height = inner.iter().map(|card| card.height).max().unwrap_or(0) + 2 * INNER;
    let mut row = Drawing::default();
    row.row(
        0,
        width,
        GAP,
        inner
            .into_iter()
            .zip(kinds)
            .map(|(card, kind)| finished(card, kind, of, (width, height), paint))
            .collect(),
    );
    row
}

fn finished(card: Drawing, kind: &str, of: Scope, (width, height): (i32, i32), paint: Paint) -> Drawing {
    let whose = if of == Scope::Host { "host" } else { "pod" };
    card.framed(width, height, INNER, paint)
        .group("namespace", vec![("kind", kind.to_owned()), ("of", whose.to_owned())])
}

fn card(pod: &Pod, of: Scope, kind: &str, (width, ink): (i32, Ink)) -> Drawing {
    let words = words::of(kind);
    let mut card = Drawing::default();
    card.line(0, width, Font::Heading, ink, words.title);
    for fact in facts(pod, kind) {
        card.line(0, width, Font::Code, TEXT, &fact);
    }
    card.gap(3);
    card.paragraph(0, width, Font::Body, TEXT, if of == Scope::Host { words.host } else { words.shared });
    if let Some(number) = number(pod, of, kind) {
        card.gap(3);
        card.line(0, width, Font::Code, SOFT, &format!("{kind}:[{number}]"));
    }
    card
}

fn number(pod: &Pod, of: Scope, kind: &str) -> Option<u64> {
    let namespaces = match (of, pod.containers.first(), &pod.sandbox) {
        (Scope::Host, ..) => &pod.host,
        (_, Some(container), _) => &container.namespaces,
        (_, None, Some(sandbox)) => &sandbox.namespaces,
        (_, None, None) => return None,
    };
    namespaces.get(kind).copied()
}

/// What this namespace holds in this pod.
fn facts(pod: &Pod, kind: &str) -> Vec<String> {
    match kind {
        "net" => addresses(&pod.addresses),
        "uts" => pod.hostname.iter().cloned().collect(),
        "user" => pod.containers.first().map_or_else(Vec::new, |container| users(&container.identity)),
        _ => Vec::new(),
    }
}

fn addresses(all: &[String]) -> Vec<String> {
    if all.is_empty() {
        return vec!["no address but localhost".to_owned()];
    }
    // One more line is worth an address rather than the words that there is one more.
    let shown = if all.len() > ADDRESSES_MAX + 1 { ADDRESSES_MAX } else { all.len() };
    let mut lines = all[..shown].to_vec();
    if shown < all.len() {
        lines.push(format!("and {} more", all.len() - shown));
    }
    lines
}

/// Where the users of a pod are on the host. Nothing where they are the same.
fn users(identity: &Identity) -> Vec<String> {
    match identity.user_map[..] {
        [] => vec!["no user has a number".to_owned()],
        [Range { inside: 0, host: 0, length: u32::MAX }] => Vec::new(),
        [Range { inside, host, .. }, ref more @ ..] => {
            let mut lines = vec![format!("user {inside} is {host} outside")];
            if !more.is_empty() {
                lines.push(format!("and {} more ranges", more.len()));
            }
            lines
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_addresses_are_counted() {
        let all = |count: usize| addresses(&vec!["10.0.0.1".to_owned(); count]);
        assert_eq!(all(0), ["no address but localhost"]);
        assert_eq!((all(5).len(), all(6).len()), (5, 5));
        assert_eq!(all(6)[4], "and 2 more");
    }
}
