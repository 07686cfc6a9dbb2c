//! What a namespace costs: time to make and pin net, ipc and uts namespaces, to attach one to the bridge, to detach and
//! unpin it, with the kernel's bare share beside it. Needs root; works in network and mount namespaces of its own.
//!
//! `cargo run --release -p crisp-netns --example cost [rounds] [threads]`
#![expect(clippy::print_stdout, reason = "printing is what it is for")]
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on has no result")]

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crisp_netns::ipam::Ipam;
use crisp_netns::namespaces::{NamespaceError, Pins, Request, create, ensure_pin_dir, unpin};
use crisp_netns::network::{AttachRequest, Network, NetworkConfig};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// One column of the table.
const STAGES: [&str; 6] = ["bare unshare", "create", "attach", "create+attach", "detach", "unpin+drop"];

type Times = [Duration; STAGES.len()];

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>().unwrap());
    let (rounds, threads) = (arguments.next().unwrap_or(100), arguments.next().unwrap_or(1));
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&Path>, "/", None::<&Path>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&Path>).unwrap();
    let folder = tempfile::tempdir().unwrap();
    ensure_pin_dir(folder.path(), true).unwrap();
    let config = NetworkConfig::default();
    let ipam = Ipam::new(config.ipv4, config.ipv6).unwrap();
    let network = Network::open(config).unwrap();

    let started = Instant::now();
    let times: Vec<Times> = std::thread::scope(|scope| {
        let (network, ipam, folder) = (&network, &ipam, folder.path());
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                scope.spawn(move || {
                    let one = |round| one(network, ipam, folder, &format!("{worker}x{round}"));
                    (0..rounds).map(one).collect::<Vec<_>>()
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let elapsed = started.elapsed();

    println!("{rounds} rounds in each of {threads} threads, milliseconds");
    println!("{:<16}{:>9}{:>9}{:>9}", "", "p50", "p95", "max");
    for (stage, name) in STAGES.iter().enumerate() {
        let mut column: Vec<f64> = times.iter().map(|round| round[stage].as_secs_f64() * 1e3).collect();
        column.sort_by(f64::total_cmp);
        let at = |share: f64| column[((column.len() - 1) as f64 * share) as usize];
        println!("{name:<16}{:>9.3}{:>9.3}{:>9.3}", at(0.5), at(0.95), at(1.0));
    }
    println!("{:.0} rounds per second", times.len() as f64 / elapsed.as_secs_f64());
    nix::mount::umount2(folder.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
}

fn one(network: &Network, ipam: &Ipam, folder: &Path, id: &str) -> Times {
    let pin = |kind: &str| Some(folder.join(format!("{id}-{kind}")));
    let pins = Pins { net: pin("net"), ipc: pin("ipc"), uts: pin("uts"), user: None };
    let (name, sysctls, lease) = (format!("cr{id}"), network.sysctls(), ipam.allocate().unwrap());

    let bare = timed(|| {
        let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        std::thread::spawn(move || unshare(flags)).join().unwrap().unwrap();
    });
    let begin = Instant::now();
    let request = Request {
        net: true,
        ipc: true,
        uts: true,
        hostname: Some("pod"),
        sysctls: &sysctls,
        pins: pins.clone(),
        origin: None,
    };
    let (mut created, ()) = create(&request, |_| Ok::<_, NamespaceError>(())).unwrap();
    let made = begin.elapsed();
    network
        .attach(AttachRequest {
            name: &name,
            alias: "cost",
            ifname: "eth0",
            netns: created.net.as_ref().unwrap().as_fd(),
            inside: created.socket.as_mut().unwrap(),
            lease: &lease,
        })
        .unwrap();
    let attached = begin.elapsed();
    let detached = timed(|| network.detach(&name).unwrap());
    let undone = timed(|| {
        drop(created);
        unpin(&pins).unwrap();
    });
    ipam.release(&lease);
    [bare, made, attached - made, attached, detached, undone]
}

fn timed(work: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    work();
    begin.elapsed()
}
