//! The oracle of the adversarial tests: that it sees what it is there to see.

use std::fs;

use anyhow::{Context, Result, ensure};
use crisp_tests::node::Node;
use crisp_tests::untouched::{self, Untouched};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "the_oracle_finds_nothing_where_nothing_is",
        needs: &[],
        images: &["busybox"],
        run: nothing,
    },
    Case { name: "the_oracle_finds_what_was_touched", needs: &[], images: &["busybox"], run: touched },
];

fn nothing(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("guest")?;
        let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
        node.cri().shell(&id, "true")?;
        node.end_pod(&pod)
    })
}

fn touched(node: &mut Node) -> Result<()> {
    type Touch = fn(&Node, &Untouched) -> Result<()>;
    let touches: [(&str, Touch); 3] = [
        ("canary", |_, watch| Ok(fs::write(watch.canary().text("secret"), "x")?)),
        ("victim", |node, watch| {
            kill(Pid::from_raw(node.cri().pid(watch.victim().container())?), Signal::SIGKILL)?;
            node.wait_for_exit(watch.victim().container()).map(drop)
        }),
        ("replaced", |node, _| node.signal(Signal::SIGKILL)),
    ];
    for (word, touch) in touches {
        let watch = Untouched::before(node)?;
        touch(node, &watch)?;
        if word == "replaced" {
            node.wait_for_end()?;
            node.serve()?;
        }
        let error = watch.compare(node).err().with_context(|| format!("{word}: not seen"))?;
        ensure!(format!("{error:#}").contains(word), "{word}: {error:#}");
        let pod = watch.into_victim().pod().clone();
        node.end_pod(&pod)?;
    }
    Ok(())
}
