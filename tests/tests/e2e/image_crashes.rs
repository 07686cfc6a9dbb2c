//! Pulls that are cut off: by kill -9 of the daemon, by a disk that is full, by a registry that hangs up. An image is
//! there as a whole or not at all, and the next pull uses what has arrived.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::image;
use crisp_tests::faulty::Faulty;
use crisp_tests::node::Node;
use crisp_tests::random::Random;
use crisp_tests::{command, place, wait};

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "t15_a_pull_goes_on_where_a_killed_daemon_left_it",
        needs: &[],
        images: &[],
        run: killed_at_a_byte,
    },
    Case {
        name: "t15_kill_at_any_moment_leaves_all_or_nothing",
        needs: &[],
        images: &[],
        run: killed_at_any_moment,
    },
    Case { name: "t15_a_full_disk_leaves_nothing_of_an_image", needs: &[], images: &[], run: full_disk },
    Case {
        name: "i05_a_registry_that_hangs_up_anywhere_delivers_in_the_end",
        needs: &[],
        images: &[],
        run: connections_cut,
    },
];

/// Sizes of layers: several megabytes, so that what has arrived of them is kept.
pub(crate) const SIZES: [usize; 4] = [5 << 20, 2 << 20, 7 << 20, 3 << 20];

/// Runs `test` with a daemon on the root directory `root`, and gives the node back as it was.
fn with_root(node: &mut Node, root: &Path, test: impl FnOnce(&mut Node) -> Result<()>) -> Result<()> {
    node.stop()?;
    let own = node.use_root(root.to_owned())?;
    node.serve()?;
    let result = test(node);
    node.stop()?;
    node.use_root(own)?;
    node.serve()?;
    result
}

fn fresh_root() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("crisp-crash-").tempdir_in(place::disk())?)
}

/// Begins a pull that nobody waits for.
pub(crate) fn begin(node: &Node, registry: &Faulty) -> thread::JoinHandle<bool> {
    let (mut pull, name) = (node.crisp_command(), registry.image());
    pull.args(["pull", &name]);
    thread::spawn(move || command::run(&mut pull).is_ok_and(|done| done.ok().is_ok()))
}

/// Bytes of the registry's layers that the store has, in place or kept.
fn arrived(root: &Path, registry: &Faulty) -> u64 {
    let kept = |hex: &str| fs::metadata(root.join("downloads").join(hex)).map(|meta| meta.len()).ok();
    registry.layers().iter().map(|layer| kept(&layer.hex).unwrap_or(0)).sum::<u64>()
        + in_place(root, registry)
}

/// Bytes of the layers that are unpacked and in place: those whose file is there in full size.
fn in_place(root: &Path, registry: &Faulty) -> u64 {
    let names: Vec<PathBuf> =
        fs::read_dir(root.join("layers")).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    let there = |index: usize| names.iter().any(|layer| layer.join(format!("layer{index}")).is_file());
    let layers = registry.layers().iter().enumerate();
    // What is still kept is counted there.
    let kept = |hex: &str| root.join("downloads").join(hex).exists();
    layers.filter(|(index, layer)| there(*index) && !kept(&layer.hex)).map(|(_, layer)| layer.size).sum()
}

/// The image is there as a whole.
pub(crate) fn whole(node: &Node, registry: &Faulty) -> Result<()> {
    let id = node.cri().image_id(&registry.image())?.context("the image is not there")?;
    let checked = node.crisp(&["images", "check", &id])?.ok()?;
    ensure!(checked.ends_with(&format!("{} layers, 0 damaged\n", registry.layers().len())), "{checked}");
    ensure!(checked.matches("good").count() == registry.layers().len(), "{checked}");
    Ok(())
}

/// Takes the image away, and with it everything.
pub(crate) fn remove(node: &Node, registry: &Faulty) -> Result<()> {
    node.cri().remove_image(cri::RemoveImageRequest { image: Some(image(&registry.image())) })?;
    let root = node.root();
    wait::until("an empty store", wait::LONG, || {
        for folder in ["images", "blobs", "layers", "staging", "downloads", "fresh", "splits"] {
            let left: Vec<_> = fs::read_dir(root.join(folder)).into_iter().flatten().flatten().collect();
            if !left.is_empty() {
                return Err(format!("{folder}: {left:?}"));
            }
        }
        Ok(())
    })
}

fn killed_at_a_byte(node: &mut Node) -> Result<()> {
    let root = fresh_root()?;
    with_root(node, root.path(), |node| {
        let mut random = Random::announced("t15_a_pull_goes_on_where_a_killed_daemon_left_it");
        for round in 0..place::rounds(6, 6) {
            let registry = Faulty::serve(&mut random, &SIZES)?;
            registry.announce(&node.registry_hosts())?;
            let total = registry.total();
            let limit = match round {
                0 => total,
                _ => 1 + random.number() % (total - 1),
            };
            registry.begin(Some(limit));
            let pull = begin(node, &registry);
            if limit < total {
                let root = node.root().to_owned();
                wait::until("everything that was sent to arrive", wait::LONG, || {
                    let arrived = arrived(&root, &registry);
                    if arrived == limit { Ok(()) } else { Err(format!("{arrived} of {limit}")) }
                })?;
                ensure!(node.cri().image_id(&registry.image())?.is_none(), "visible before it was whole");
            } else {
                ensure!(pull.join().is_ok_and(|done| done), "an undisturbed pull failed");
                whole(node, &registry)?;
                node.kill_and_restart()?;
                whole(node, &registry)?;
                remove(node, &registry)?;
                continue;
            }
            node.kill_and_restart()?;
            ensure!(!pull.join().unwrap_or(true), "the pull of a killed daemon succeeded");
            ensure!(node.cri().image_id(&registry.image())?.is_none(), "half an image is visible");
            registry.begin(None);
            node.cri().pull(&registry.image())?;
            let again = registry.sent();
            ensure!(again == total - limit, "{again} bytes came again where {} were missing", total - limit);
            whole(node, &registry)?;
            remove(node, &registry)?;
        }
        Ok(())
    })
}

fn killed_at_any_moment(node: &mut Node) -> Result<()> {
    let root = fresh_root()?;
    with_root(node, root.path(), |node| {
        let mut random = Random::announced("t15_kill_at_any_moment_leaves_all_or_nothing");
        for _ in 0..place::rounds(6, 6) {
            let registry = Faulty::serve(&mut random, &SIZES)?;
            registry.announce(&node.registry_hosts())?;
            // While bytes come, or at one of the steps that follow when all have come.
            let at = random.number() % (registry.total() + 1);
            let step = random.below(4);
            registry.begin(None);
            let pull = begin(node, &registry);
            let root = node.root().to_owned();
            let count = |folder: &str| fs::read_dir(root.join(folder)).map_or(0, Iterator::count);
            wait::until("the moment", wait::LONG, || {
                let reached = match step {
                    0 => count("layers") > 0,
                    1 => count("layers") == registry.layers().len(),
                    2 => count("blobs") > 0,
                    _ => registry.sent() >= at,
                };
                if reached || pull.is_finished() { Ok(()) } else { Err("not yet") }
            })?;
            node.kill_and_restart()?;
            let done = pull.join().unwrap_or(false);
            match node.cri().image_id(&registry.image())? {
                Some(_) => whole(node, &registry)?,
                None => ensure!(!done, "the pull had been answered, and the image is gone"),
            }
            node.cri().pull(&registry.image())?;
            whole(node, &registry)?;
            remove(node, &registry)?;
        }
        Ok(())
    })
}

/// A small file system of its own, unmounted in the end.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, megabytes: usize) -> Result<Self> {
        fs::create_dir(&at)?;
        let size = format!("size={megabytes}m");
        command::run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "crisp-small"]).arg(&at))?
            .ok()?;
        Ok(Self(at))
    }

    fn grow(&self, megabytes: usize) -> Result<()> {
        let size = format!("remount,size={megabytes}m");
        command::run(Command::new("mount").args(["-o", &size]).arg(&self.0))?.ok()?;
        Ok(())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = command::run(Command::new("umount").arg(&self.0));
    }
}

fn full_disk(node: &mut Node) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("crisp-full-").tempdir_in(place::volatile())?;
    let small = Small::mount(folder.path().join("root"), 20)?;
    let root = small.0.clone();
    with_root(node, &root, |node| {
        let mut random = Random::announced("t15_a_full_disk_leaves_nothing_of_an_image");
        // The first fits, the last does not.
        let registry = Faulty::serve(&mut random, &[2 << 20, 30 << 20])?;
        registry.announce(&node.registry_hosts())?;
        let refused = node.cri().pull(&registry.image()).err().context("it fit")?;
        ensure!(refused.message().contains("No space left on device"), "{refused:?}");
        ensure!(node.cri().image_id(&registry.image())?.is_none(), "half an image is visible");
        // What did not fit is gone, so that whoever needs the room has it.
        let none =
            || if arrived(&root, &registry) <= registry.layers()[0].size { Ok(()) } else { Err("not yet") };
        wait::until("the large layer to go", wait::LONG, none)?;
        node.kill_and_restart()?;
        ensure!(node.cri().image_id(&registry.image())?.is_none(), "half an image is visible");
        small.grow(200)?;
        registry.begin(None);
        node.cri().pull(&registry.image())?;
        ensure!(
            registry.asked().iter().all(|(hex, _)| *hex != registry.layers()[0].hex),
            "the layer that was in place was fetched again: {:?}",
            registry.asked()
        );
        whole(node, &registry)?;
        remove(node, &registry)
    })
}

fn connections_cut(node: &mut Node) -> Result<()> {
    let root = fresh_root()?;
    with_root(node, root.path(), |node| {
        let mut random = Random::announced("i05_a_registry_that_hangs_up_anywhere_delivers_in_the_end");
        for _ in 0..place::rounds(4, 4) {
            let registry = Faulty::serve(&mut random, &SIZES)?;
            registry.announce(&node.registry_hosts())?;
            registry.begin(None);
            registry.cut(Some(random.clone()));
            random.number();
            // Half of what is left at a time: in the end nothing is left, in one pull or in several.
            let mut pulls = 0;
            while let Err(error) = node.cri().pull(&registry.image()) {
                ensure!(error.message().contains("RegistryUnavailable"), "{error:?}");
                ensure!(node.cri().image_id(&registry.image())?.is_none(), "half an image is visible");
                pulls += 1;
                if pulls == 5 {
                    registry.cut(None);
                }
                ensure!(pulls < 10, "no pull comes to its end: {error:?}");
            }
            whole(node, &registry)?;
            remove(node, &registry)?;
        }
        Ok(())
    })
}
