//! Pods for the tests of whoever shows facts.

use super::{
    cgroup::Cgroup,
    facts::{Container, Idle, Pod, Sandbox},
    identity::{Identity, Range},
    mounts::Mount,
    namespaces::{KINDS, Namespaces},
};

/// Namespaces with these numbers, in the order of [`KINDS`].
pub(super) fn namespaces(numbers: [u64; 7]) -> Namespaces {
    KINDS.iter().map(|(kind, _)| (*kind).to_owned()).zip(numbers).collect()
}

pub(super) fn mount(target: &str, source: &str, content: &str, read_only: bool) -> Mount {
    let asked = source.starts_with('/');
    Mount { target: target.into(), source: source.into(), content: content.into(), read_only, asked }
}

/// Root of the host.
fn root() -> Identity {
    let all = Range { inside: 0, host: 0, length: u32::MAX };
    Identity { pid_inside: 1, user: 0, user_inside: Some(0), user_map: vec![all] }
}

fn limits(cpu: &str, memory: &str) -> Cgroup {
    Cgroup {
        path: "/crisp/x".into(),
        cpu_max: Some(cpu.into()),
        cpu_weight: Some("100".into()),
        memory_max: Some(memory.into()),
        memory_current: Some("1572864".into()),
        ..Default::default()
    }
}

/// The number of container `index`'s namespace `kind`, when it is a container's own.
fn own(kind: u64, index: usize) -> u64 {
    10 * (index as u64 + 1) + kind
}

/// A pod as it usually is: network, IPC and hostname of its own, users of the host.
pub(super) fn pod(containers: usize) -> Pod {
    let container = |index: usize| Container {
        name: format!("c{index}"),
        id: format!("c{index}"),
        image: "docker.io/library/busybox:latest".into(),
        pid: 4000 + u32::try_from(index).unwrap(),
        identity: root(),
        namespaces: namespaces([11, 12, 13, own(4, index), own(5, index), own(6, index), 7]),
        cgroup: limits("max 100000", "max"),
        mounts: vec![mount("/", "overlay", &format!("0:{} /", index + 1), false)],
    };
    Pod {
        namespace: "default".into(),
        name: "demo".into(),
        id: "0123456789abcdef".into(),
        ready: true,
        host_name: "node-1".into(),
        host: namespaces([1, 2, 3, 4, 5, 6, 7]),
        sandbox: Some(Sandbox { pid: 3990, namespaces: namespaces([11, 12, 13, 4, 5, 6, 7]) }),
        hostname: Some("demo".into()),
        addresses: vec!["10.88.0.7".into(), "fd00::7".into()],
        cgroup: None,
        containers: (0..containers).map(container).collect(),
        idle: Vec::new(),
    }
}

/// Two containers, one of them with limits, that share a volume.
pub(super) fn two_containers() -> Pod {
    let mut pod = pod(2);
    let names = ["main", "helper"];
    for (container, name) in pod.containers.iter_mut().zip(names) {
        container.name = name.into();
    }
    let [main, helper] = &mut pod.containers[..] else { unreachable!("there are two") };
    main.cgroup = limits("20000 100000", "67108864");
    main.mounts.push(mount("/data", "/v", "8:1 /v", false));
    helper.mounts[0].read_only = true;
    helper.mounts.push(mount("/in", "/v", "8:1 /v", true));
    pod
}

/// The pod of examples/03-two-containers.yaml with a limit, as a node has it.
pub(super) fn example() -> Pod {
    const FOLDER: &str =
        "/var/lib/crisp-play/default_multi-container-demo_7d0f3b1c-8a55-4c0e-9d3e-6f6f2c1b7a90";
    const RUN: &str = "/run/crisp/pods/5b1e9f0c7d3a4f62";
    let mut pod = pod(2);
    pod.name = "multi-container-demo".into();
    pod.id = "5b1e9f0c7d3a4f6298b1c0de".into();
    pod.hostname = Some(pod.name.clone());
    let kernel = [
        4_026_531_840,
        4_026_531_839,
        4_026_531_838,
        4_026_531_836,
        4_026_531_841,
        4_026_531_835,
        4_026_531_837,
    ];
    pod.host = namespaces(kernel);
    let own = |base: u64| {
        namespaces([4_026_532_291, 4_026_532_290, 4_026_532_289, base, base + 1, base + 2, kernel[6]])
    };
    pod.sandbox = Some(Sandbox { pid: 4102, namespaces: own(4_026_532_400) });
    for (index, (name, image)) in [("main-app", "python:3.9"), ("helper", "busybox")].into_iter().enumerate()
    {
        let container = &mut pod.containers[index];
        container.name = name.into();
        container.image = image.into();
        container.pid = [4119, 4168][index];
        container.namespaces = own(4_026_532_300 + 3 * index as u64);
        container.cgroup = Cgroup {
            path: format!("/crisp/5b1e9f0c7d3a4f62/{name}"),
            cpu_max: Some(["20000 100000", "max 100000"][index].into()),
            cpu_weight: Some("100".into()),
            memory_max: Some(["67108864", "max"][index].into()),
            memory_current: Some(["22020096", "1048576"][index].into()),
            pids_max: Some("max".into()),
            pids_current: Some(["1", "2"][index].into()),
            cpu_usage: Some(["1834000", "47000"][index].into()),
            cpu_throttled: Some(["7", "0"][index].into()),
        };
        container.mounts = vec![
            mount("/", "overlay", &format!("0:{} /", 40 + index), false),
            mount("/dev/shm", "tmpfs", "0:38 /", false),
            mount("/data", &format!("{FOLDER}/volumes/shared-data"), "8:1 /data", false),
            mount("/etc/hosts", &format!("{FOLDER}/etc-hosts"), "8:1 /hosts", false),
            mount("/etc/resolv.conf", "tmpfs", &format!("0:25 {RUN}/resolv.conf"), false),
            mount("/etc/hostname", "tmpfs", &format!("0:25 {RUN}/hostname"), false),
            mount(
                "/dev/termination-log",
                &format!("{FOLDER}/{name}/termination-log"),
                &format!("8:1 /{name}"),
                false,
            ),
        ];
    }
    pod
}

/// A pod on the host's network, among the host's processes, with the host's shared memory.
pub(super) fn hosts() -> Pod {
    let mut pod = pod(2);
    pod.name = "node-agent".into();
    pod.hostname = Some(pod.host_name.clone());
    pod.addresses = (1..9).map(|number| format!("192.0.2.{number}")).collect();
    for (index, container) in pod.containers.iter_mut().enumerate() {
        let own = own(5, index);
        container.namespaces = namespaces([1, 2, 3, 4, own, own + 1, 7]);
        container.identity.pid_inside = container.pid;
        container.mounts.push(mount("/host", "/", "8:1 /", true));
    }
    pod.sandbox = Some(Sandbox { pid: 3990, namespaces: namespaces([1, 2, 3, 4, 5, 6, 7]) });
    pod
}

/// A pod with users of its own whose containers see each other's processes, and that has limits of its own.
pub(super) fn users() -> Pod {
    let mut pod = pod(3);
    for (index, container) in pod.containers.iter_mut().enumerate() {
        let inside = u32::try_from(index).unwrap();
        let map = vec![Range { inside: 0, host: 196_608, length: 65_536 }];
        container.namespaces.extend([("pid".to_owned(), 14), ("user".to_owned(), 17)]);
        container.identity = Identity {
            pid_inside: 2 + inside,
            user: 196_608 + inside,
            user_inside: Some(inside),
            user_map: map,
        };
    }
    pod.cgroup = Some(limits("50000 100000", "134217728"));
    pod
}

/// A pod of which each container is in another place.
pub(super) fn mixed() -> Pod {
    let mut pod = pod(4);
    let pids = [14, 14, 4, 54];
    for (container, pid) in pod.containers.iter_mut().zip(pids) {
        container.namespaces.insert("pid".to_owned(), pid);
    }
    pod.containers[1].name = "debugger".into();
    pod
}

/// A pod that has been stopped, with containers that have ended in different ways.
pub(super) fn stopped() -> Pod {
    let mut pod = pod(0);
    (pod.ready, pod.sandbox, pod.hostname, pod.addresses) = (false, None, None, Vec::new());
    let ends = [("prepare", "Completed (0)"), ("web", "OOMKilled (137)"), ("never-started", "Created")];
    pod.idle = ends.map(|(name, state)| idle(name, state)).into();
    pod
}

fn idle(name: &str, state: &str) -> Idle {
    Idle { name: name.into(), id: name.into(), image: "busybox".into(), state: state.into() }
}

/// A pod whose every text was made to break out of a picture.
pub(super) fn hostile() -> Pod {
    let texts = [
        "</text></svg><script>alert(1)</script>",
        "\"'><rect onload=\"alert(1)\" width='9999'/>&amp;&#0;]]>",
        "\u{0}\u{1}\n\t\u{1b}[31m\u{7f}\u{9b}\u{202e}gnp.evil\u{feff}\u{fffe}\u{ffff}",
        "漢字かな交じり文🦀🦀🦀\u{301}\u{301}\u{301}",
    ];
    let long = texts.concat().repeat(4);
    let mut pod = pod(3);
    (pod.name, pod.namespace, pod.id) = (texts[0].into(), texts[1].into(), texts[2].into());
    (pod.host_name, pod.hostname, pod.addresses) = (long.clone(), Some(long.clone()), vec![long.clone(); 3]);
    for (container, text) in pod.containers.iter_mut().zip([texts[0], texts[2], &long]) {
        (container.name, container.image) = (text.into(), long.clone());
        let file =
            |name: &str| mount(&format!("/{text}/{name}"), &format!("/{long}"), &format!("8:1 {text}"), true);
        container.mounts.push(file("own"));
        container.mounts.push(mount(&long, &long, "8:1 /all", false));
    }
    pod.idle = vec![idle(&long, texts[0]), idle(texts[3], texts[2])];
    pod
}
