//! Compares crisp and containerd: the same requests to both, and a look around inside each container.
//!
//! Run through hack/differ. Must not know: how either runtime works inside.
#![expect(clippy::print_stdout, reason = "the comparison is what this program is for")]

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use crisp_tests::differ::compare::differences;
use crisp_tests::differ::containerd::Containerd;
use crisp_tests::differ::explained::{Ledger, compare_with_page};
use crisp_tests::differ::images;
use crisp_tests::differ::scenarios::{PODS, Pod, Scenario};
use crisp_tests::differ::side::{Seen, Side};
use crisp_tests::node::Node;
use crisp_tests::{command, place};

#[derive(Debug, Default)]
struct Options {
    show: bool,
    filter: String,
}

#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
    explained: usize,
}

impl Tally {
    /// Prints one line, or more, for a test.
    fn add(&mut self, name: &str, note: &str, problems: &[String]) {
        if problems.is_empty() {
            self.passed += 1;
            println!("ok      {name}{note}");
        } else {
            self.failed += 1;
            println!("FAILED  {name}{note}\n{}", problems.join("\n"));
        }
    }
}

fn main() -> Result<ExitCode> {
    let mut options = Options::default();
    for argument in env::args().skip(1) {
        match argument.as_str() {
            "--show" => options.show = true,
            name if name.starts_with('-') => bail!("unknown option {name}: use hack/differ"),
            name => name.clone_into(&mut options.filter),
        }
    }
    if let Some(reason) = place::obstacle(&[]) {
        bail!("{reason}");
    }
    let disk = tempfile::Builder::new().prefix("crisp-differ-").tempdir_in(place::disk())?;
    let volatile = tempfile::Builder::new().prefix("crisp-differ-").tempdir_in(place::volatile())?;
    let pair = Pair::start(disk.path(), volatile.path())?;
    let tally = pair
        .compare_all(&options)
        .map_err(|error| anyhow!("{error:#}\n{}\n{}", pair.node.daemon_said(), pair.containerd.said()))?;
    pair.finish()?;
    let skipped = if tally.skipped > 0 { format!(", {} skipped", tally.skipped) } else { String::new() };
    println!("\n{} explained differences", tally.explained);
    println!("{} passed, {} failed{skipped}", tally.passed, tally.failed);
    Ok(if tally.failed == 0 && tally.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Both runtimes, up and with their images.
struct Pair {
    node: Node,
    containerd: Containerd,
    sides: [Side; 2],
}

impl Pair {
    fn start(disk: &Path, volatile: &Path) -> Result<Self> {
        // The probe opens a node of it, which would make it come into being in the middle of a run. Where there are no
        // modules it is there, or never will be.
        let _ = command::run(Command::new("modprobe").arg("tun"));
        let started = Instant::now();
        let images = images::build(&disk.join("images"))?;
        let (node, containerd) = thread::scope(|scope| {
            let node = scope.spawn(|| {
                let node = Node::start()?;
                for (_, layout, _) in &images {
                    node.crisp(&["import", &layout.display().to_string()])?.ok()?;
                }
                Ok::<_, anyhow::Error>(node)
            });
            let containerd = scope.spawn(|| {
                let folder = disk.join("containerd");
                fs::create_dir_all(&folder)?;
                let containerd = Containerd::start(&folder, volatile)?;
                for (name, _, archive) in &images {
                    containerd.import(name, archive, volatile)?;
                }
                Ok::<_, anyhow::Error>(containerd)
            });
            Ok::<_, anyhow::Error>((joined(node)?, joined(containerd)?))
        })?;
        let side = |name, cri, cgroup: String| Side {
            name,
            cri,
            cgroup,
            logs: disk.join(name).join("logs"),
            data: disk.join(name).join("data"),
        };
        let parent = node.scope().cgroup_parent.clone();
        let sides = [
            side("crisp", node.cri().clone(), format!("{parent}/crisp")),
            side("containerd", containerd.cri().clone(), format!("{parent}/containerd")),
        ];
        println!("both are up after {} s", started.elapsed().as_secs());
        Ok(Self { node, containerd, sides })
    }

    fn compare_all(&self, options: &Options) -> Result<Tally> {
        let (mut tally, mut ledger) = (Tally::default(), Ledger::default());
        let mut jobs = Vec::new();
        for pod in PODS {
            let wanted = pod.scenarios.iter().filter(|scenario| scenario.name.contains(&options.filter));
            let (possible, not): (Vec<&Scenario>, Vec<_>) =
                wanted.partition(|scenario| place::obstacle(scenario.needs).is_none());
            for scenario in not {
                tally.skipped += 1;
                println!(
                    "skipped {}: {}",
                    scenario.name,
                    place::obstacle(scenario.needs).unwrap_or_default()
                );
            }
            if !possible.is_empty() {
                jobs.push((pod, possible));
            }
        }
        // Two pods at a time: one runtime waits for the other less.
        let (next, jobs) = (AtomicUsize::new(0), jobs.as_slice());
        thread::scope(|scope| {
            let (send, results) = mpsc::channel();
            for _ in 0..2 {
                let (send, next) = (send.clone(), &next);
                scope.spawn(move || {
                    while let Some((pod, scenarios)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        // Nobody listens any more once a pod has failed.
                        if send.send((scenarios, self.run(pod, scenarios))).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(send);
            for (scenarios, pair) in results {
                let (crisp, containerd) = pair?;
                for ((scenario, crisp), containerd) in scenarios.iter().zip(&crisp).zip(&containerd) {
                    judge(scenario.name, [crisp, containerd], options, &mut ledger, &mut tally);
                }
            }
            Ok::<_, anyhow::Error>(())
        })?;
        let page = fs::read_to_string(place::top().join("docs/differences.md"))?;
        tally.add("docs/differences.md has every reason, and no other", "", &compare_with_page(&page));
        // Not every difference shows where there are no controllers.
        if options.filter.is_empty() && place::has_controllers() {
            tally.add("every explanation explains something", "", &ledger.unused());
        }
        Ok(tally)
    }

    /// The same pod on both sides at the same time.
    fn run(&self, pod: &Pod, scenarios: &[&Scenario]) -> Result<(Vec<Seen>, Vec<Seen>)> {
        let [crisp, containerd] = &self.sides;
        thread::scope(|scope| {
            let crisp = scope.spawn(|| crisp.run(pod, scenarios));
            let containerd = scope.spawn(|| containerd.run(pod, scenarios));
            Ok((joined(crisp)?, joined(containerd)?))
        })
    }

    fn finish(self) -> Result<()> {
        let mut node = self.node;
        self.containerd.stop()?;
        node.stop()?;
        for side in &self.sides {
            side.clear(&node.scope().cgroup_root)?;
        }
        node.finish()?;
        crisp_tests::node::remove_shared_root()
    }
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}

fn judge(
    scenario: &str,
    [crisp, containerd]: [&Seen; 2],
    options: &Options,
    ledger: &mut Ledger,
    tally: &mut Tally,
) {
    let (mut explained, mut problems) = (0, Vec::new());
    for difference in differences(&crisp.facts, &containerd.facts) {
        match ledger.explain(scenario, &difference) {
            Some(why) => {
                explained += 1;
                if options.show {
                    println!("{difference}\n      because     {why}");
                }
            }
            None => problems.push(difference.to_string()),
        }
    }
    if !problems.is_empty() {
        let refusals = [("crisp", crisp), ("containerd", containerd)];
        problems.extend(
            refusals
                .iter()
                .filter_map(|(name, seen)| Some(format!("  {name} said: {}", seen.refusal.as_ref()?))),
        );
    }
    tally.explained += explained;
    let note = format!(" ({} facts, {explained} explained differences)", crisp.facts.len());
    tally.add(scenario, &note, &problems);
}
