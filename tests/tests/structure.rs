//! Holds the house to its plan: who may import whom, where `unsafe` and async may live, what a crate root must say.
//!
//! The tables below are the rules. docs/architecture.md shows the first one as text, and a test compares the two, so that
//! picture and code cannot drift apart. Must not know: a running kernel; nothing here needs root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};
use crisp_tests::source::Source;

/// Which rooms a room may import. Nobody imports `cli` or `tests`; siblings never import each other.
const EDGES: &[(&str, &[&str])] = &[
    ("tests", &["cli", "shim", "monitor", "runtime", "netns", "image", "sys", "proto"]),
    ("cli", &["shim", "proto"]),
    ("shim", &["monitor", "runtime", "netns", "image", "sys", "proto"]),
    ("monitor", &["runtime", "sys"]),
    ("runtime", &["sys"]),
    ("netns", &["sys"]),
    ("image", &["sys"]),
    ("sys", &[]),
    ("proto", &[]),
];

/// Crates of others that only some rooms may depend on.
const CONFINED: &[(&str, &[&str])] = &[
    ("libc", &["sys", "runtime", "monitor", "tests"]),
    ("nix", &["sys", "runtime", "monitor", "netns", "tests"]),
    ("caps", &["sys", "runtime", "monitor", "tests"]),
    ("libseccomp", &["runtime"]),
    ("tonic", &["proto", "shim", "cli", "tests"]),
    ("prost", &["proto", "shim", "cli", "tests", "runtime", "monitor"]),
    ("tokio", &["shim", "image", "cli", "tests"]),
    ("oci-spec", &["runtime", "image", "shim"]),
    ("tracing", &["netns", "image", "shim", "cli", "tests"]),
    ("log", &[]),
    ("anyhow", &["cli", "tests"]),
];

/// Where inside a room a crate's name may stand: (room, word, path prefixes below the room's folder).
const CONFINED_WITHIN: &[(&str, &str, &[&str])] = &[
    ("runtime", "oci_spec", &["src/oci.rs", "src/oci/", "src/seccomp/", "src/launch/tests/"]),
    ("runtime", "libseccomp", &["src/seccomp/"]),
    ("runtime", "prost", &["src/plan.rs", "src/plan/"]),
    ("monitor", "prost", &["src/wire.rs", "src/wire/"]),
];

/// Where `unsafe` may stand.
const UNSAFE_ALLOWED: &[&str] =
    &["sys/", "runtime/src/init.rs", "runtime/src/init/", "monitor/src/bin/crisp-monitor/"];

/// File names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["mod", "util", "utils", "common", "helpers", "misc"];

/// What the monitor's dependency tree must not hold: it is one process a pod, its size is everybody's memory.
const NOT_IN_MONITOR: &[&str] =
    &["serde", "serde_core", "libseccomp", "oci-spec", "tokio", "tracing", "tracing-core"];
const MONITOR_PACKAGES_MAX: usize = 25;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies below the workspace").to_path_buf()
}

fn metadata() -> Metadata {
    MetadataCommand::new().manifest_path(top().join("Cargo.toml")).no_deps().exec().expect("cargo metadata")
}

fn room_of(package: &str) -> Option<&str> {
    package.strip_prefix("crisp-")
}

/// Every `.rs` file of a room with its path relative to the workspace.
fn sources(room: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![top().join(room)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a room's folder is readable") {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(top()).expect("below the workspace").display().to_string();
                found.push((name, fs::read_to_string(&path).expect("a source file is UTF-8")));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no source found in {room}");
    found
}

fn rooms() -> Vec<&'static str> {
    EDGES.iter().map(|(room, _)| *room).collect()
}

fn all_sources() -> Vec<(String, String)> {
    rooms().into_iter().flat_map(sources).collect()
}

fn assert_none(rule: &str, breaches: &[String]) {
    assert!(breaches.is_empty(), "{rule}:\n  {}", breaches.join("\n  "));
}

#[test]
fn every_workspace_member_is_a_room_of_the_table() {
    let members: BTreeSet<_> =
        metadata().packages.iter().map(|p| room_of(&p.name).unwrap_or(&p.name).to_owned()).collect();
    assert_eq!(members, rooms().into_iter().map(str::to_owned).collect());
}

#[test]
fn rooms_import_downwards_only() {
    let allowed: BTreeMap<_, _> = EDGES.iter().copied().collect();
    let mut breaches = Vec::new();
    for package in &metadata().packages {
        let room = room_of(&package.name).expect("member names start with crisp-");
        for dependency in &package.dependencies {
            if let Some(target) = room_of(&dependency.name)
                && !allowed[room].contains(&target)
            {
                breaches.push(format!("{room} must not import {target} ({:?})", dependency.kind));
            }
        }
    }
    assert_none("import order", &breaches);
}

#[test]
fn docs_show_the_same_edges() {
    let width = EDGES.iter().map(|(room, _)| room.len()).max().unwrap_or(0);
    let mut picture = String::new();
    for (room, targets) in EDGES {
        let targets = if targets.is_empty() { "-".to_owned() } else { targets.join(" ") };
        picture.push_str(&format!("{room:width$} -> {targets}\n"));
    }
    let page = top().join("docs/architecture.md");
    let text = fs::read_to_string(&page).expect("docs/architecture.md is readable");
    assert!(
        text.contains(&picture),
        "docs/architecture.md must hold this block, as it stands here:\n{picture}"
    );
}

#[test]
fn confined_crates_stay_in_their_rooms() {
    let confined: BTreeMap<_, _> = CONFINED.iter().copied().collect();
    let mut breaches = Vec::new();
    for package in &metadata().packages {
        let room = room_of(&package.name).expect("member names start with crisp-");
        for dependency in &package.dependencies {
            // prost builds proto's code, and proto's tests read descriptors.
            let family = dependency.name.split("-types").next().unwrap_or(&dependency.name);
            if let Some(rooms) = confined.get(family)
                && dependency.kind != DependencyKind::Build
                && !rooms.contains(&room)
            {
                breaches.push(format!("{room} must not depend on {}", dependency.name));
            }
        }
    }
    assert_none("confined crates", &breaches);
}

#[test]
fn confined_names_stay_in_their_files() {
    let mut breaches = Vec::new();
    for (room, word, places) in CONFINED_WITHIN {
        for (path, text) in sources(room) {
            let inner = &path[room.len() + 1..];
            if places.iter().any(|p| inner.starts_with(p)) || inner.starts_with("tests/") {
                continue;
            }
            for line in Source::split(&text).lines_with_word(word) {
                breaches.push(format!("{path}:{line} names {word}"));
            }
        }
    }
    assert_none("confined names", &breaches);
}

#[test]
fn the_daemon_uses_the_monitors_wire_and_client_only() {
    let mut breaches = Vec::new();
    for (path, text) in sources("shim") {
        let code = Source::split(&text).code;
        for (at, _) in code.match_indices("crisp_monitor::") {
            let rest = &code[at + "crisp_monitor::".len()..];
            if !rest.starts_with("wire") && !rest.starts_with("client") && !rest.starts_with('{') {
                breaches.push(format!("{path}: crisp_monitor::{}", rest.lines().next().unwrap_or("")));
            }
        }
    }
    assert_none("shim may use monitor::{wire, client} only", &breaches);
}

#[test]
fn runtime_and_monitor_do_not_log() {
    let mut breaches = Vec::new();
    for (path, text) in sources("runtime").into_iter().chain(sources("monitor")) {
        if path.contains("/tests/") {
            continue;
        }
        let source = Source::split(&text);
        for word in ["tracing", "println", "eprintln", "dbg"] {
            breaches.extend(
                source.lines_with_word(word).iter().map(|line| format!("{path}:{line} names {word}")),
            );
        }
    }
    assert_none("runtime and monitor return outcomes and do not log", &breaches);
}

#[test]
fn unsafe_stands_only_where_it_may() {
    let mut breaches = Vec::new();
    for (path, text) in all_sources() {
        if UNSAFE_ALLOWED.iter().any(|p| path.starts_with(p)) {
            continue;
        }
        breaches.extend(
            Source::split(&text).lines_with_word("unsafe").iter().map(|line| format!("{path}:{line}")),
        );
    }
    assert_none("unsafe outside sys, runtime::init and the monitor's binary", &breaches);
}

#[test]
fn every_unsafe_block_says_why_it_holds() {
    let mut breaches = Vec::new();
    for (path, text) in all_sources() {
        let source = Source::split(&text);
        let code: Vec<_> = source.code.lines().collect();
        let comments: Vec<_> = source.comments.lines().collect();
        for line in source.lines_with_word("unsafe") {
            let after = code[line - 1].split("unsafe").last().unwrap_or("").trim_start();
            let block = after.is_empty() || after.starts_with('{') || after.starts_with("impl");
            if block && !has_safety_above(&code, &comments, line - 1) {
                breaches.push(format!("{path}:{line}"));
            }
        }
    }
    assert_none("unsafe without a SAFETY comment right above", &breaches);
}

/// Looks for `SAFETY:` in the comment lines directly above `index`; the statement the block stands in may be split over
/// lines, so lines that end no statement are skipped on the way up.
fn has_safety_above(code: &[&str], comments: &[&str], index: usize) -> bool {
    if comments[index].contains("SAFETY:") {
        return true;
    }
    for above in (0..index).rev() {
        if comments[above].contains("SAFETY:") {
            return true;
        }
        let text = code[above].trim();
        if text.is_empty() && comments[above].trim().is_empty() {
            return false;
        }
        if text.ends_with([';', '{', '}']) || text.ends_with("=>") {
            return false;
        }
    }
    false
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut breaches = Vec::new();
    for (path, text) in all_sources() {
        let stem = Path::new(&path).file_stem().and_then(|s| s.to_str()).unwrap_or("").to_owned();
        if EMPTY_NAMES.contains(&stem.as_str()) {
            breaches.push(format!("{path}: a file is named after what it holds"));
        }
        // A module of unit tests is said what it is for by the module that it tests.
        if stem != "tests" && !text.starts_with("//! ") {
            breaches.push(format!("{path}: no module doc"));
        }
    }
    assert_none("module docs and names", &breaches);
}

#[test]
fn every_crate_root_says_what_it_must_not_know() {
    let mut breaches = Vec::new();
    for package in &metadata().packages {
        for target in &package.targets {
            if !(target.is_lib() || target.is_bin()) {
                continue;
            }
            let text = fs::read_to_string(&target.src_path).expect("a crate root is readable");
            let doc: String = text.lines().take_while(|l| l.starts_with("//!")).map(|l| &l[3..]).collect();
            let doc = doc.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
            if !doc.contains("must not know") {
                breaches.push(format!("{} ({})", target.name, target.src_path));
            }
        }
    }
    assert_none("crate roots without \"must not know\"", &breaches);
}

#[test]
fn the_monitor_stays_small() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--package", "crisp-monitor", "--edges", "normal", "--prefix", "none", "--no-dedupe"])
        .args(["--format", "{p}"])
        .current_dir(top())
        .output()
        .expect("cargo tree");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo prints UTF-8");
    let packages: BTreeSet<_> = text.lines().filter_map(|l| l.split_whitespace().next()).collect();
    assert!(packages.contains("crisp-sys"), "cargo tree printed something else: {text}");
    assert!(packages.len() <= MONITOR_PACKAGES_MAX, "{} packages: {packages:?}", packages.len());
    let heavy: Vec<_> = NOT_IN_MONITOR.iter().filter(|name| packages.contains(**name)).collect();
    assert!(heavy.is_empty(), "the monitor depends on {heavy:?}");
}
