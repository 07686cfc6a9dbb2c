//! Descriptors of the runtime that a container must not get: as its working directory, and by inheritance. `r03_` and
//! `r04_` of the adversarial cases.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1::{self as cri, NamespaceMode};
use crisp_tests::build::{Build, Tar};
use crisp_tests::cri::{bind, container_config};
use crisp_tests::flipper::{self, Flipper};
use crisp_tests::node::{Node, Pod};
use crisp_tests::untouched::{self, Canary, SECRET};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::case::Case;
use crate::userns;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "r03_a_descriptor_is_no_working_directory",
        needs: &[],
        images: &["busybox"],
        run: working_directories,
    },
    Case {
        name: "r03_a_race_makes_no_descriptor_a_working_directory",
        needs: &[],
        images: &["busybox"],
        run: raced,
    },
    Case { name: "r04_a_container_inherits_no_descriptor", needs: &[], images: &["busybox"], run: inherited },
];

const NAME: &str = "test/directory:1";

/// Where a process has its descriptors, and what else of it would do.
fn ways() -> Vec<String> {
    let mut ways: Vec<_> = (3..=64).map(|number| format!("/proc/self/fd/{number}")).collect();
    ways.extend(
        [
            "/proc/self/fd/7/../../..",
            "/proc/self/fd/8/new/deep",
            "/proc/thread-self/fd/7",
            "/proc/1/fd/7",
            "/proc/self/cwd",
            "/proc/self/root",
            "/proc/self/root/proc/self/fd/9",
            "/proc/self/task/../fd/7",
        ]
        .map(str::to_owned),
    );
    ways
}

/// Shows that a container is not made, and that the error says why.
fn no_container(node: &Node, pod: &Pod, image: &str, working_dir: &str) -> Result<()> {
    let mut config = container_config("c", image, &["pwd"]);
    working_dir.clone_into(&mut config.working_dir);
    let error = node.cri().create(&pod.id, &config, &pod.config).err();
    let error = error.with_context(|| format!("{working_dir:?} in {image}: a container was made"))?;
    let names = [" directory /", "working_dir "].iter().any(|words| error.message().contains(words));
    ensure!(names, "{working_dir:?} in {image}: {error:?}");
    Ok(())
}

fn working_directories(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let pod = node.run_pod("directories")?;
        for way in ways() {
            no_container(node, &pod, "busybox", &way)?;
        }
        for way in ["/proc/self/fd/3", "/proc/self/fd/7", "/proc/self/fd/8", "/proc/thread-self/fd/9"] {
            node.build_image(NAME, Build::on("busybox").set("WorkingDir", way.into()))?;
            no_container(node, &pod, NAME, "")?;
            node.remove_image(NAME)?;
        }
        let layer = Tar::default()
            .symlink("x", "/proc/self/fd/7")
            .symlink("y", "/x")
            .symlink("z", "../../proc/self/fd/8")
            .dir("d")
            .symlink("d/e", "../y");
        node.build_image(NAME, Build::on("busybox").layer(layer))?;
        for link in ["/x", "/y", "/z", "/d/e", "/d/../x", "/x/deep"] {
            no_container(node, &pod, NAME, link)?;
        }
        node.remove_image(NAME)?;
        executed(node, &pod, canary)?;
        node.end_pod(&pod)
    })
}

/// The container puts links in the place of its working directory, and somebody executes something there.
fn executed(node: &Node, pod: &Pod, canary: &Canary) -> Result<()> {
    let mut config = container_config("c", "busybox", &["sleep", "3600"]);
    "/work".clone_into(&mut config.working_dir);
    let id = node.launch_as(pod, &config)?;
    ensure!(node.cri().shell(&id, "pwd")? == "/work\n");
    for way in ways() {
        // From inside of the directory that is replaced: this one exec still begins there.
        node.cri().shell(&id, &format!("cd / && rm -rf /work && ln -s {way} /work && mkdir /next"))?;
        let said = node.cri().exec(&id, &["sh", "-c", "cat $0; ls", &up(canary)]);
        let error = said.err().with_context(|| format!("{way}: something was executed there"))?;
        ensure!(error.message().contains("directory"), "{way}: {error:?}");
        // Nothing can be executed now that would clean up; the root of the container's process is where it is.
        let root = format!("/proc/{}/root", node.cri().pid(&id)?);
        fs::remove_file(format!("{root}/work"))?;
        fs::rename(format!("{root}/next"), format!("{root}/work"))?;
    }
    Ok(node.cri().remove(&id)?)
}

/// From a directory of the host to the canary.
fn up(canary: &Canary) -> String {
    format!("../../../../../../../../../..{}", canary.text("secret"))
}

fn raced(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let volume = node.folder().join("volume");
        let (inside, link) = (volume.join("dir"), volume.join("link"));
        fs::create_dir_all(&inside)?;
        symlink("/proc/self/fd/7", &link)?;
        let pod = node.run_pod("raced")?;
        let look = ["sh", "-c", "cat $0 2>/dev/null; [ / -ef ../.. ] && echo inside", &up(canary)];
        let mut config = container_config("c", "busybox", &look);
        config.mounts = vec![bind(&volume, "/volume")];
        "/volume/dir".clone_into(&mut config.working_dir);
        // All of them write to one log.
        let steady = cri::ContainerConfig { command: vec!["sleep".into(), "3600".into()], ..config.clone() };
        let steady = node.launch_as(&pod, &steady)?;
        config.metadata.get_or_insert_default().attempt = 1;
        let race = Flipper::start(&inside, &link);
        let (rounds, mut ran) = (flipper::rounds(), 0);
        for _ in 0..rounds / 2 {
            if let Ok(said) = node.cri().exec(&steady, &look) {
                ensure!(said.stdout == "inside\n", "{said:?}");
                ran += 1;
            }
            let Ok(id) = node.cri().create(&pod.id, &config, &pod.config) else { continue };
            if node.cri().start(&id).is_ok() {
                node.wait_for_exit(&id)?;
                ran += 1;
            }
            node.cri().remove(&id)?;
        }
        let flips = race.stop(rounds)?;
        let log = crate::logs::read(node, &steady)?;
        ensure!(log.iter().all(|line| line.content == "inside"), "{log:?}; the secret is {SECRET:?}");
        ensure!(ran > 0 && ran < rounds, "{ran} of {rounds} ran under {flips} exchanges: there was no race");
        node.end_pod(&pod)
    })
}

/// What a daemon may inherit from whoever has started it, a hundred times: directories and files of the host, a device,
/// and sockets.
fn strangers() -> Result<(Vec<File>, Vec<UnixDatagram>)> {
    let devices = fs::read_dir("/dev")?.flatten().filter(|entry| {
        entry.file_type().is_ok_and(|kind| kind.is_block_device()) && File::open(entry.path()).is_ok()
    });
    let device = devices.map(|entry| entry.path()).next().unwrap_or_else(|| "/dev/kmsg".into());
    let paths = [Path::new("/"), Path::new("/etc"), Path::new("/etc/shadow"), &device];
    let files = (0..20).flat_map(|_| paths.map(File::open)).collect::<Result<_, _>>()?;
    Ok((files, (0..20).map(|_| UnixDatagram::unbound()).collect::<Result<_, _>>()?))
}

/// Device and inode.
type Identity = (u64, u64);

fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn inheritable(descriptors: &[BorrowedFd<'_>], flags: FdFlag) -> Result<()> {
    Ok(descriptors.iter().try_for_each(|fd| fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop))?)
}

fn inherited(node: &mut Node) -> Result<()> {
    node.stop()?;
    let (files, sockets) = strangers()?;
    let all: Vec<_> = files.iter().map(AsFd::as_fd).chain(sockets.iter().map(AsFd::as_fd)).collect();
    inheritable(&all, FdFlag::empty())?;
    let served = node.serve();
    inheritable(&all, FdFlag::FD_CLOEXEC)?;
    served?;
    let mut strangers = Vec::new();
    for file in &files {
        let meta = file.metadata()?;
        strangers.push((meta.dev(), meta.ino()));
    }
    untouched::around(node, |node, _| {
        for (name, pid, user) in [
            ("own", NamespaceMode::Container, false),
            ("pod", NamespaceMode::Pod, false),
            ("node", NamespaceMode::Node, false),
            ("user", NamespaceMode::Pod, true),
        ] {
            let options = match user {
                true => userns::options(userns::HOST, pid),
                false => cri::NamespaceOption { pid: pid.into(), ..Default::default() },
            };
            let pod = node.run_pod_as(userns::sandbox(node, name, options.clone())?)?;
            for tty in [false, true] {
                let name = if tty { "terminal" } else { "pipes" };
                let mut config = userns::container(name, &["sleep", "3600"], &options)?;
                (config.tty, config.stdin) = (tty, tty);
                let id = node.launch_as(&pod, &config)?;
                only_streams(node, &id, tty, &strangers)
                    .with_context(|| format!("{name} in {}", pod.config.hostname))?;
            }
            node.end_pod(&pod)?;
        }
        Ok(())
    })
}

/// Descriptors 0 to 2, of the kinds they are documented to be, in a container's first process and in an exec'd one; and
/// nothing of the strangers in the monitor, which all of them are copies of.
fn only_streams(node: &Node, id: &str, tty: bool, strangers: &[Identity]) -> Result<()> {
    let pid = node.cri().pid(id)?;
    let own: &[&str] = if tty { &["/dev/pts/0"] } else { &["/dev/null", "pipe:"] };
    let first = node.cri().shell(id, &format!("ls -l /proc/{}/fd", init_inside(node, id)?))?;
    streams(&first, own)?;
    // The shell's; that of ls itself has one more, which is the directory.
    streams(&node.cri().shell(id, "ls -l /proc/$$/fd; :")?, &["/dev/null", "pipe:"])?;
    let listed = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    ensure!(listed == 3, "{listed} descriptors, as the host sees them");
    let monitor = crate::restart::monitor_of(node, pid)?;
    for entry in fs::read_dir(format!("/proc/{monitor}/fd"))?.flatten() {
        let stranger = identity(&entry.path()).is_some_and(|file| strangers.contains(&file));
        ensure!(!stranger, "the monitor has {}", fs::read_link(entry.path())?.display());
    }
    Ok(())
}

/// The pid of a container's first process as it sees that itself.
fn init_inside(node: &Node, id: &str) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{}/status", node.cri().pid(id)?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).context("no NSpid")?;
    Ok(line.split_whitespace().last().context("no pid")?.to_owned())
}

/// Holds a listing of descriptors to three of these kinds.
fn streams(listing: &str, kinds: &[&str]) -> Result<()> {
    let links = listing.lines().filter_map(|line| line.split_once(" -> "));
    let links: Vec<_> =
        links.map(|(before, target)| (before.rsplit(' ').next().unwrap_or_default(), target)).collect();
    let numbers: Vec<_> = links.iter().map(|(number, _)| *number).collect();
    ensure!(numbers == ["0", "1", "2"], "{listing}");
    let known = |target: &str| kinds.iter().any(|kind| target.starts_with(kind));
    ensure!(links.iter().all(|(_, target)| known(target)), "{listing}");
    Ok(())
}
