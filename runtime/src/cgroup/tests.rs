//! With real cgroups: in a hierarchy without controllers, which every machine with cgroup v2 mounted has.

use super::*;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Held by every test that makes a process: a child has all open files of this process for a moment, also one that
/// another test is writing into its root file system, which can then neither become read-only (`EBUSY`) nor be
/// executed (`ETXTBSY`). A monitor has no such files.
pub(crate) fn my_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The hierarchy of this machine, or none where it is not mounted or cannot be written.
pub(crate) fn hierarchy() -> Option<Hierarchy> {
    ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].into_iter().find_map(|root| {
        let hierarchy = Hierarchy::open(Path::new(root)).ok()?;
        nix::unistd::access(root, nix::unistd::AccessFlags::W_OK).ok()?;
        Some(hierarchy)
    })
}

fn top(name: &str) -> CgroupPath {
    CgroupPath::new(&format!("/crisp-test-{name}-{}", std::process::id())).unwrap()
}

#[test]
fn a_directory_is_no_hierarchy() {
    let dir = tempfile::tempdir().unwrap();
    let error = Hierarchy::open(dir.path()).unwrap_err();
    assert!(error.to_string().ends_with("is not cgroup v2"), "{error}");
}

#[test]
fn cgroups_are_made_listed_and_removed_with_what_is_below() {
    let Some(hierarchy) = hierarchy() else { return };
    let parent = top("tree").join("pod").unwrap();
    let cgroup = hierarchy.create(&parent, "web").unwrap();
    assert!(hierarchy.create(&parent, "web").unwrap_err().is_exists());
    cgroup.sub("exec-1").unwrap().sub("deeper").unwrap();
    assert_eq!(hierarchy.list(&parent).unwrap(), ["web"]);
    assert!(!cgroup.events().unwrap().populated);
    assert_eq!(cgroup.stats().unwrap().pids_max, None);
    let again = hierarchy.open_cgroup(&cgroup.path).unwrap();
    again.remove(Duration::ZERO).unwrap();
    again.remove(Duration::ZERO).unwrap();
    assert!(cgroup.events().unwrap_err().is_not_found());
    assert!(hierarchy.open_cgroup(&cgroup.path).unwrap_err().is_not_found());
    assert!(hierarchy.list(&parent.join("web").unwrap()).unwrap().is_empty());
    hierarchy.open_cgroup(&top("tree")).unwrap().remove(Duration::ZERO).unwrap();
}

#[test]
fn a_limit_without_its_controller_is_an_error_that_names_it() {
    let Some(hierarchy) = hierarchy() else { return };
    if !hierarchy.missing(&["memory"]).is_empty() {
        let cgroup = hierarchy.create(&top("limit"), "web").unwrap();
        let error = cgroup.apply(&Resources { memory_limit: 1 << 20, ..Resources::default() }).unwrap_err();
        let text =
            "memory_limit_in_bytes: memory.swap.max: the cgroup v2 controller \"memory\" is not available";
        assert_eq!(error.to_string(), text);
        cgroup.apply(&Resources::default()).unwrap();
        hierarchy.open_cgroup(&top("limit")).unwrap().remove(Duration::ZERO).unwrap();
    }
}

#[test]
fn limits_are_applied_whole_or_not_at_all() {
    let Some(hierarchy) = hierarchy().filter(|found| found.missing(&["memory", "pids"]).is_empty()) else {
        return;
    };
    let cgroup = hierarchy.create(&top("whole"), "web").unwrap();
    let first = Resources { pids: 10, memory_limit: 64 << 20, ..Resources::default() };
    cgroup.apply(&first).unwrap();
    let unified = BTreeMap::from([("pids.max".to_owned(), "rubbish".to_owned())]);
    let error = cgroup.apply(&Resources { memory_limit: 32 << 20, unified, ..first }).unwrap_err();
    assert!(error.to_string().contains("write \"rubbish\" to"), "{error}");
    let stats = cgroup.stats().unwrap();
    assert_eq!((stats.memory_max, stats.pids_max), (Some(64 << 20), Some(10)));
    hierarchy.open_cgroup(&top("whole")).unwrap().remove(Duration::ZERO).unwrap();
}

#[test]
fn removal_waits_for_the_last_process() {
    let Some(hierarchy) = hierarchy() else { return };
    let _turn = my_turn();
    let cgroup = hierarchy.create(&top("wait"), "web").unwrap();
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    std::fs::write(cgroup.location().join("cgroup.procs"), child.id().to_string()).unwrap();
    assert!(cgroup.events().unwrap().populated);
    assert_eq!(cgroup.processes().unwrap(), [child.id() as i32]);
    let error = cgroup.remove(Duration::ZERO).unwrap_err();
    assert!(matches!(error, CgroupError::Populated { .. }), "{error}");
    cgroup.kill().unwrap();
    // Not reaped yet: a zombie does not count.
    cgroup.remove(Duration::from_secs(60)).unwrap();
    // Killing and removing what somebody else has removed meanwhile is done already.
    cgroup.kill().unwrap();
    cgroup.remove(Duration::ZERO).unwrap();
    assert!(!child.wait().unwrap().success());
    hierarchy.open_cgroup(&top("wait")).unwrap().remove(Duration::ZERO).unwrap();
}
