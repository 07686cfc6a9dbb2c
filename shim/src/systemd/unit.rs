//! Names of units and the places of their cgroups (systemd.unit(5), systemd.slice(5)).
//!
//! Must not know: how systemd is spoken with.

/// Longest name of a unit (systemd.unit(5)).
const LONGEST: usize = 255;

/// Checks a slice and gives the path of its cgroup: `a-b.slice` lies in `a.slice`. `asked` is the slice alone, or its
/// whole path, which must be the one that its name implies.
///
/// # Errors
/// What is wrong with it.
pub fn slice_path(asked: &str) -> Result<String, String> {
    let name = asked.rsplit('/').next().unwrap_or_default();
    let path = expand(name)?;
    if asked.contains('/') && asked != path && asked.strip_prefix('/') != Some(name) {
        return Err(format!("the slice {name} lies at {path}"));
    }
    Ok(path)
}

fn expand(name: &str) -> Result<String, String> {
    let stem =
        name.strip_suffix(".slice").ok_or_else(|| "not a slice: its name must end in .slice".to_owned())?;
    if name.len() > LONGEST {
        return Err(format!("a name of more than {LONGEST} bytes"));
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'-' | b'_' | b'.' | b'\\');
    if !stem.bytes().all(legal) {
        return Err("characters that no name of a unit can have".to_owned());
    }
    if stem == "-" {
        return Err("the root slice is no place for pods".to_owned());
    }
    if stem.split('-').any(str::is_empty) {
        return Err("an empty part between its dashes".to_owned());
    }
    let mut path = String::new();
    for (at, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
        path.push_str(&format!("/{}.slice", &stem[..at]));
    }
    Ok(path)
}

/// The slice whose cgroup a path of plain names stands for: `/a/b` is `a-b.slice`, a slice stays what it is.
///
/// # Errors
/// As [`slice_path`].
pub fn slice_for(path: &str) -> Result<String, String> {
    match path.ends_with(".slice") {
        true => slice_path(path),
        false => slice_path(&format!("{}.slice", path.trim_matches('/').replace('/', "-"))),
    }
}

/// The slice `part` below the slice at `parent`.
#[must_use]
pub fn slice_below(parent: &str, part: &str) -> String {
    let stem = name_of(parent).strip_suffix(".slice").unwrap_or_default();
    format!("{parent}/{stem}-{part}.slice")
}

/// The scope of something with this id. cAdvisor and kubelet find the id between the dash and `.scope`.
#[must_use]
pub fn scope(id: &str) -> String {
    format!("crisp-{id}.scope")
}

/// The unit whose cgroup is at `path`.
#[must_use]
pub fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_lies_in_those_that_its_name_begins_with() {
        let deep = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        for asked in ["kubepods-burstable-pod1_2.slice", "/kubepods-burstable-pod1_2.slice", deep] {
            assert_eq!(slice_path(asked).as_deref(), Ok(deep), "{asked}");
        }
        assert_eq!(slice_path("/test.slice").as_deref(), Ok("/test.slice"));
        assert_eq!(slice_for("/crisp").as_deref(), Ok("/crisp.slice"));
        assert_eq!(slice_for("/a/b").as_deref(), Ok("/a.slice/a-b.slice"));
        assert_eq!(slice_below("/a.slice", "x"), "/a.slice/a-x.slice");
        assert_eq!(name_of("/a.slice/crisp-1.scope"), scope("1"));
    }

    #[test]
    fn r33_what_is_no_slice_or_not_where_it_says_is_refused() {
        for bad in [
            "",
            "/",
            "-.slice",
            ".slice",
            "a--b.slice",
            "-a.slice",
            "a-.slice",
            "/kubepods/burstable",
            "a.scope",
            "../a.slice",
            "/a.slice/../b.slice",
            "/b.slice/a.slice",
            "/a.slice/a-b-c.slice",
            "a\n.slice",
            "a b.slice",
            "a@b.slice",
            "a%i.slice",
            "a.slice/",
            "//a.slice",
        ] {
            assert!(slice_path(bad).is_err(), "{bad:?} is {:?}", slice_path(bad));
        }
        assert!(slice_path(&format!("{}.slice", "x".repeat(250))).is_err());
    }
}
