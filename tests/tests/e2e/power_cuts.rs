//! Power cuts: what had not reached the disk is lost. An image that was reported survives one, and one that was being pulled
//! is there as a whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use crisp_tests::faulty::Faulty;
use crisp_tests::node::Node;
use crisp_tests::place::Need;
use crisp_tests::random::Random;
use crisp_tests::{command, place, wait};

use crate::case::Case;
use crate::image_crashes::{SIZES, begin, remove, whole};

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[Case {
    name: "t15_a_reported_image_survives_a_power_cut",
    needs: &[Need::OwnKernel],
    images: &[],
    run: power_cuts,
}];

/// A disk in a file, mounted.
struct Disk {
    file: PathBuf,
    at: PathBuf,
}

impl Disk {
    fn make(folder: &Path) -> Result<Self> {
        let disk = Self { file: folder.join("disk"), at: folder.join("root") };
        fs::File::create(&disk.file)?.set_len(512 << 20)?;
        fs::create_dir(&disk.at)?;
        command::run(Command::new("mkfs.ext4").arg("-q").arg(&disk.file))?.ok()?;
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<()> {
        let mut mount = Command::new("mount");
        command::run(mount.args(["-o", "loop"]).arg(&self.file).arg(&self.at))?.ok()?;
        Ok(())
    }

    /// From now on nothing reaches the disk, neither data nor the journal: `EXT4_IOC_SHUTDOWN` with
    /// `EXT4_GOING_FLAGS_NOLOGFLUSH` (fs/ext4/ioctl.c).
    fn cut(&self) -> Result<()> {
        let program = "import fcntl, os, struct, sys; \
             fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
        command::run(Command::new("python3").args(["-c", program]).arg(&self.at))?.ok()?;
        Ok(())
    }

    /// What is on the disk is there again, after the journal was played.
    fn repair(&self) -> Result<()> {
        command::run(Command::new("umount").arg(&self.at))?.ok()?;
        self.mount()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = command::run(Command::new("umount").arg(&self.at));
    }
}

fn power_cuts(node: &mut Node) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("crisp-power-").tempdir_in(place::disk())?;
    let disk = Disk::make(folder.path())?;
    node.kill()?;
    let own = node.use_root(disk.at.clone())?;
    node.serve()?;
    let result = cuts(node, &disk);
    node.kill()?;
    node.use_root(own)?;
    node.serve()?;
    result
}

fn cuts(node: &mut Node, disk: &Disk) -> Result<()> {
    let mut random = Random::announced("t15_a_reported_image_survives_a_power_cut");
    let mut lost = 0;
    for round in 0..place::rounds(8, 4) {
        let registry = Faulty::serve(&mut random, &SIZES)?;
        registry.announce(&node.registry_hosts())?;
        let reported = round % 2 == 0;
        let unsynced = disk.at.join("unsynced");
        if reported {
            node.cri().pull(&registry.image())?;
            fs::write(&unsynced, "lost")?;
            disk.cut()?;
            node.kill()?;
        } else {
            let at = random.number() % (registry.total() + 1);
            registry.begin(None);
            let pull = begin(node, &registry);
            wait::until("the moment", wait::LONG, || {
                if registry.sent() >= at || pull.is_finished() { Ok(()) } else { Err("not yet") }
            })?;
            disk.cut()?;
            node.kill()?;
            let _ = pull.join();
        }
        disk.repair()?;
        lost += usize::from(reported && !unsynced.exists());
        node.serve()?;
        let there = node.cri().image_id(&registry.image())?;
        ensure!(there.is_some() || !reported, "round {round}: a reported image is gone");
        if there.is_some() {
            whole(node, &registry).with_context(|| format!("round {round}, reported: {reported}"))?;
        }
        node.cri().pull(&registry.image())?;
        whole(node, &registry)?;
        remove(node, &registry)?;
    }
    ensure!(lost > 0, "nothing was lost: these were no power cuts");
    Ok(())
}
