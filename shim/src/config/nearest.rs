//! The name that was probably meant. Must not know what the names are of.

/// The name among `names` that is nearest to `wrong`, if one is near enough to have been meant: at most a third of its
/// letters differ. Case, `-` and `_` do not count.
pub fn nearest<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |name: &str| -> Vec<char> {
        name.chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect()
    };
    let wrong = plain(wrong);
    names
        .into_iter()
        .map(|name| (distance(&wrong, &plain(name)), name))
        .filter(|(distance, name)| *distance <= name.len().max(wrong.len()).div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// How many letters must be added, removed, replaced or swapped with their neighbour to get from one to the other.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_typo_finds_what_was_meant() {
        let names = ["containers", "initContainers", "volumes", "restartPolicy"];
        assert_eq!(nearest("contianers", names), Some("containers"));
        assert_eq!(nearest("restart_policy", names), Some("restartPolicy"));
        assert_eq!(nearest("volume", names), Some("volumes"));
        assert_eq!(nearest("initcontainer", names), Some("initContainers"));
    }

    #[test]
    fn what_is_far_from_everything_finds_nothing() {
        assert_eq!(nearest("flavour", ["image", "command"]), None);
        assert_eq!(nearest("mode", ["driver", "root"]), None);
        assert_eq!(nearest("", ["image"]), None);
    }
}
