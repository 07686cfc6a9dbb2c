//! How one test runs: a node of its own, the host before, the test, the host after.
//!
//! Must not know: what is tested.

use std::env;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use crisp_tests::command;
use crisp_tests::host::{Scope, Snapshot};
use crisp_tests::node::Node;
use crisp_tests::place::{self, Need};
use libtest_mimic::{Failed, Trial};

/// One test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// The rule that it shows.
    pub(crate) name: &'static str,
    /// What it cannot do without.
    pub(crate) needs: &'static [Need],
    /// Images that must be there before it starts.
    pub(crate) images: &'static [&'static str],
    /// The test.
    pub(crate) run: fn(&mut Node) -> Result<()>,
}

/// The tests of the set that the environment asks for.
pub(crate) fn trials<'a>(cases: impl Iterator<Item = &'a Case>) -> Vec<Trial> {
    let required = env::var("CRISP_E2E").is_ok_and(|value| value == "require");
    let set = env::var("CRISP_E2E_SET").unwrap_or_default();
    let wanted = |case: &&Case| match set.as_str() {
        "controllers" => needs_node(case),
        "no-controllers" => !needs_node(case),
        "own-kernel" => needs_own_kernel(case),
        "shared-kernel" => !needs_own_kernel(case),
        _ => true,
    };
    cases.filter(wanted).map(|case| trial(*case, required)).collect()
}

/// Whether a test needs what only the kernel of a real node has.
fn needs_node(case: &Case) -> bool {
    needs_own_kernel(case) || case.needs.contains(&Need::Controllers)
}

/// Whether a test needs a kernel in which it may change what no namespace keeps apart: clock, disks, loaded profiles.
fn needs_own_kernel(case: &Case) -> bool {
    case.needs.iter().any(|need| matches!(need, Need::AppArmor | Need::OwnKernel))
}

fn trial(case: Case, required: bool) -> Trial {
    let obstacle = place::obstacle(case.needs);
    let kind = match &obstacle {
        Some(reason) if !required => reason.clone(),
        _ if case.needs.contains(&Need::Controllers) => "controllers".to_owned(),
        _ => String::new(),
    };
    let ignored = obstacle.is_some() && !required;
    let run = move || match obstacle {
        Some(reason) => Err(Failed::from(format!("required, but {reason}"))),
        None => run(&case).map_err(|error| Failed::from(format!("{error:#}"))),
    };
    Trial::test(case.name, run).with_kind(kind).with_ignored_flag(ignored)
}

fn run(case: &Case) -> Result<()> {
    // Before the node there is no daemon, so no folder or cgroup of its own to look at.
    let bare = Scope {
        cgroup_root: "/nowhere".into(),
        cgroup_parent: "/nowhere".to_owned(),
        folders: Vec::new(),
        monitor: place::binary("crisp-monitor")?,
    };
    prepare_pin_folder()?;
    let untouched = Snapshot::take(&bare)?;
    let mut node = Node::start()?;
    with_node(case, &mut node).map_err(|error| anyhow::anyhow!("{error:#}\n{}", node.daemon_said()))?;
    node.finish().context("taking the node apart")?;
    let limit = std::time::Duration::from_secs(60);
    untouched.wait_for_return(&bare, limit).context("after the daemon has been stopped")
}

/// Makes /run/netns what `ip netns` makes of it at its first use: a shared mount, which nobody ever takes away, because
/// nobody can tell who else relies on it. crisp leaves it too; with it there before, all the rest has to go.
fn prepare_pin_folder() -> Result<()> {
    for verb in ["add", "del"] {
        command::run(Command::new("ip").args(["netns", verb, "crisp-test-probe"]))?.ok()?;
    }
    Ok(())
}

fn with_node(case: &Case, node: &mut Node) -> Result<()> {
    node.ensure_images(case.images).context("import of the images the test needs")?;
    let before = node.snapshot()?;
    (case.run)(node)?;
    let pods = node.cri().pods()?;
    ensure!(pods.is_empty(), "sandboxes left behind: {pods:?}");
    let containers = node.cri().containers()?;
    ensure!(containers.is_empty(), "containers left behind: {containers:?}");
    node.wait_for_return(&before).context("with the daemon idle")
}
