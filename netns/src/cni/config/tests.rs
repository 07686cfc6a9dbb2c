use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

const GOOD: &str = r#"{"cniVersion":"1.0.0","name":"good","plugins":[{"type":"bridge"}]}"#;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

/// The one problem of a folder with one file.
fn refused(text: &str) -> String {
    let folder = folder(&[("a.conflist", text)]);
    let none = first(folder.path()).unwrap_err();
    assert_eq!(none.problems.len(), 1, "{none}");
    assert_eq!(none.problems[0].name, "a.conflist");
    none.problems[0].reason.clone()
}

#[test]
fn the_first_valid_file_in_the_order_of_names_is_the_network() {
    let folder = folder(&[
        ("05-broken.conflist", "{"),
        ("07-other.txt", GOOD),
        (
            "10-single.conf",
            r#"{"cniVersion":"0.4.0","name":"single","type":"ptp","capabilities":{"dns":true}}"#,
        ),
        ("20-good.conflist", GOOD),
    ]);
    let list = first(folder.path()).unwrap();
    assert_eq!((list.name.as_str(), list.version), ("single", Version::V0_4_0));
    assert_eq!(list.plugins[0].kind, "ptp");
    assert_eq!(list.plugins[0].capabilities, ["dns"]);
    fs::remove_file(folder.path().join("10-single.conf")).unwrap();
    assert_eq!(first(folder.path()).unwrap().name, "good");
    fs::remove_file(folder.path().join("20-good.conflist")).unwrap();
    let none = first(folder.path()).unwrap_err();
    assert!(none.to_string().contains("05-broken.conflist: it is no JSON"), "{none}");
    assert!(first(&folder.path().join("missing")).unwrap_err().problems.is_empty());
}

#[test]
fn a_list_survives_the_ledger() {
    let text = r#"{"cniVersion":"0.3.1","cniVersions":["0.4.0","1.1.0","9.9.9"],"name":"n","disableGC":true,
        "disableCheck":"true","plugins":[{"type":"a","own":{"deep":[1]}},{"type":"b","capabilities":{"x":false}}]}"#;
    let list = NetworkList::of_json(&serde_json::from_str(text).unwrap()).unwrap();
    assert_eq!(list.version, Version::V1_1_0);
    assert!(list.disable_gc && list.disable_check && list.plugins[1].capabilities.is_empty());
    assert_eq!(NetworkList::of_json(&list.to_json()).unwrap(), list);
}

#[test]
fn files_that_others_control_are_refused_by_name() {
    let folder = folder(&[("1.conflist", GOOD), ("outside/real", GOOD), ("inside", GOOD)]);
    let at = |name: &str| folder.path().join(name);
    fs::set_permissions(at("1.conflist"), Permissions::from_mode(0o646)).unwrap();
    symlink("/dev/zero", at("2.conflist")).unwrap();
    symlink("../../../../etc/hostname", at("3.conf")).unwrap();
    nix::unistd::mkfifo(&at("4.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(at("5.conflist"), format!("{GOOD}{}", " ".repeat(1 << 20))).unwrap();
    fs::create_dir(at("6.conflist")).unwrap();
    symlink("nowhere", at("7.conflist")).unwrap();
    let none = first(folder.path()).unwrap_err();
    let said: Vec<_> = none.problems.iter().map(ToString::to_string).collect();
    for (line, reason) in said.iter().zip([
        "1.conflist: everybody may write to it (mode 646)",
        "2.conflist: it is a symbolic link that leads out of the folder",
        "3.conf: it is a symbolic link that leads out of the folder",
        "4.json: it is no regular file",
        "5.conflist: it is larger than 1048576 bytes",
        "6.conflist: it is no regular file",
        "7.conflist: ",
    ]) {
        assert!(line.starts_with(reason), "{line}");
    }
    assert_eq!(said.len(), 7);
    symlink("inside", at("0.conflist")).unwrap();
    assert_eq!(first(folder.path()).unwrap().name, "good");
}

#[test]
fn lists_that_cannot_be_meant_are_refused_with_a_reason() {
    for (text, reason) in [
        ("[]", "it is no JSON object"),
        (r#"{"name":"n","plugins":[{"type":"a"}]}"#, "cniVersion is missing"),
        (
            r#"{"cniVersion":"2.0.0","name":"n","plugins":[{"type":"a"}]}"#,
            "cniVersion 2.0.0 is none of 0.3.1",
        ),
        (r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#, "name is missing"),
        (
            r#"{"cniVersion":"1.0.0","name":"../n","plugins":[{"type":"a"}]}"#,
            "name \"../n\" is not of letters",
        ),
        (r#"{"cniVersion":"1.0.0","name":"n"}"#, "plugins is empty"),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "plugins is empty"),
        (
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../../bin/sh"}]}"#,
            "plugins[0].type \"../../bin/sh\"",
        ),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":".."}]}"#, "plugins[0].type \"..\""),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":""}]}"#, "plugins[0].type \"\""),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#, "plugins[0].type is missing"),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[1]}"#, "plugins[0] is no object"),
        (
            r#"{"cniVersion":"1.0.0","name":"n","disableGC":3,"plugins":[{"type":"a"}]}"#,
            "disableGC 3 is neither",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a","capabilities":{"x":"y"}}]}"#,
            "plugins[0].capabilities:",
        ),
    ] {
        let said = refused(text);
        assert!(said.starts_with(reason), "{text}: {said}");
    }
}

#[test]
fn plugins_of_the_networks_own_folder_follow_those_of_the_list() {
    let text = r#"{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"a"}]}"#;
    let folder = folder(&[
        ("n.conflist", text),
        ("n/20.conf", r#"{"type":"c"}"#),
        ("n/10.conf", r#"{"type":"b"}"#),
        ("n/30.json", "{"),
    ]);
    let kinds = |list: NetworkList| list.plugins.into_iter().map(|plugin| plugin.kind).collect::<Vec<_>>();
    assert_eq!(kinds(first(folder.path()).unwrap()), ["a", "b", "c"]);
    let only = text.replace("\"name\"", "\"loadOnlyInlinedPlugins\":true,\"name\"");
    fs::write(folder.path().join("n.conflist"), only).unwrap();
    assert_eq!(kinds(first(folder.path()).unwrap()), ["a"]);
    fs::write(folder.path().join("n.conflist"), r#"{"cniVersion":"1.1.0","name":"n"}"#).unwrap();
    assert_eq!(kinds(first(folder.path()).unwrap()), ["b", "c"]);
    fs::write(folder.path().join("n/20.conf"), "{").unwrap();
    assert!(first(folder.path()).unwrap_err().to_string().contains("n.conflist: n/20.conf: it is no JSON"));
}
