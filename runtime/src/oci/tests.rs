use super::*;
use crate::nodes::Node;
use crate::plan::Attach;
use crisp_sys::mount::MountAttr;
use oci_spec::runtime as spec;
use serde_json::{Value, json};

/// A container as a CRI daemon asks for it.
fn web() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": true},
        "process": {
            "args": ["nginx", "-g", "daemon off;"],
            "env": ["PATH=/usr/bin:/bin", "HOME=/root"],
            "cwd": "/srv",
            "user": {"uid": 101, "gid": 101, "additionalGids": [101, 2000]},
            "capabilities": {
                "bounding": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"],
                "effective": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"],
                "permitted": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]
            },
            "noNewPrivileges": true,
            "oomScoreAdj": 937,
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}]
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/var/lib/x/hosts", "options": ["rbind", "rprivate", "rw"]},
            {"destination": "/data", "type": "bind", "source": "/mnt/data", "options": ["rbind", "rslave", "ro", "noatime"]},
            {"destination": "/frozen", "type": "bind", "source": "/mnt/frozen", "options": ["rbind", "rro", "rprivate"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}],
            "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o660, "gid": 44}],
            "maskedPaths": ["/proc/kcore", "/sys/firmware", "/proc/kcore"],
            "readonlyPaths": ["/proc/sys"]
        }
    })
}

fn no_namespace(_: &IdMappings) -> Result<OwnedFd, PlanError> {
    panic!("a user namespace that nobody asked for")
}

fn input() -> PlanInput {
    PlanInput { staging: "/run/crisp/staging".into() }
}

fn ask(value: &Value) -> Result<Planned, PlanError> {
    plan(&serde_json::from_value(value.clone()).unwrap(), &input())
}

/// The error for [`web`] with one place changed.
fn refused(pointer: &str, change: Value) -> String {
    let mut value = web();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match value.pointer_mut(parent).unwrap() {
        Value::Object(map) => drop(map.insert(key.to_owned(), change)),
        Value::Array(list) => list.push(change),
        other => panic!("{other} has no children"),
    }
    ask(&value).unwrap_err().to_string()
}

#[test]
fn a_container_becomes_a_plan() {
    let planned = ask(&web()).unwrap();
    insta::assert_snapshot!(planned.plan, @r#"
    plan: 4 descriptors, own cgroup namespace
      attach the root at /run/crisp/staging: private
      mount /proc (proc): nosuid,nodev,noexec [source=proc]
      mount /dev (tmpfs): nosuid,strictatime [source=tmpfs,mode=755,size=65536k]
      mount /dev/pts (devpts): nosuid,noexec [source=devpts,newinstance,ptmxmode=0666,mode=0620,gid=5]
      mount /dev/mqueue (mqueue): nosuid,nodev,noexec [source=mqueue]
      mount /sys (sysfs): ro,nosuid,nodev,noexec [source=sysfs]
      mount /sys/fs/cgroup (cgroup2): ro,nosuid,nodev,noexec [source=cgroup]
      mount /etc/hosts (bind): fd 1 (file), set [] clear [], private and below
      mount /data (bind): fd 2 (file), set [ro,noatime] clear [atime], slave and below
      mount /frozen (bind): fd 3 (file), set [] clear [] set below, too [ro], private and below
      create device /dev/null: c 1:3 0666 0:0
      create device /dev/zero: c 1:5 0666 0:0
      create device /dev/full: c 1:7 0666 0:0
      create device /dev/random: c 1:8 0666 0:0
      create device /dev/urandom: c 1:9 0666 0:0
      create device /dev/tty: c 5:0 0666 0:0
      create link /dev/ptmx -> pts/ptmx
      create link /dev/fd -> /proc/self/fd
      create link /dev/stdin -> /proc/self/fd/0
      create link /dev/stdout -> /proc/self/fd/1
      create link /dev/stderr -> /proc/self/fd/2
      create device /dev/fuse: c 10:229 0660 0:44
      create directory /srv: 0755
      make /proc/sys read-only
      mask /proc/kcore
      mask /sys/firmware
      pivot into the root, read-only
    process: "nginx" "-g" "daemon off;"
      env: "PATH=/usr/bin:/bin" "HOME=/root"
      cwd: /srv, umask 0022
      user: 101:101 groups [101, 2000]
      capabilities: bounding 0x401 effective 0x401 permitted 0x401 inheritable 0x0 ambient 0x0
      no_new_privs: true, oom_score_adj: 937
      rlimit 7: 1024:4096
    "#);
    let sources: Vec<_> =
        planned.sources.iter().map(|source| (source.path.to_str().unwrap(), source.recursive)).collect();
    assert_eq!(sources, [("/var/lib/x/hosts", true), ("/mnt/data", true), ("/mnt/frozen", true)]);
}

#[test]
fn a_plan_is_the_same_after_a_journey() {
    let plan = ask(&web()).unwrap().plan;
    assert_eq!(Plan::from_bytes(&plan.to_bytes()).unwrap(), plan);
}

#[test]
fn an_exec_is_a_plan_without_operations() {
    let process: spec::Process = serde_json::from_value(
        json!({"args": ["sh"], "cwd": "/", "user": {"uid": 5, "gid": 6, "umask": 63}}),
    )
    .unwrap();
    insta::assert_snapshot!(exec_plan(&process, None, None).unwrap(), @r#"
    plan: 0 descriptors
    process: "sh"
      env: 
      cwd: /, umask 0077
      user: 5:6 groups []
      capabilities: bounding 0x0 effective 0x0 permitted 0x0 inheritable 0x0 ambient 0x0
      no_new_privs: false, oom_score_adj: inherited
    "#);
}

#[test]
fn a_host_dev_is_left_alone() {
    let mut value = web();
    value["mounts"] =
        json!([{"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]}]);
    let plan = ask(&value).unwrap().plan;
    let made = plan.ops.iter().filter(|op| matches!(op.kind, Some(Kind::Device(_) | Kind::Symlink(_))));
    assert_eq!(made.count(), 1, "only the listed device");
}

#[test]
fn directories_are_noted_when_sources_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let mut value = web();
    let bind = |name: &str| json!({"destination": format!("/{name}"), "type": "bind", "source": dir.path().join(name), "options": ["rbind"]});
    value["mounts"] = json!([bind("."), bind("file")]);
    value["mounts"][0]["destination"] = json!("/dir");
    let mut planned = ask(&value).unwrap();
    assert_eq!(planned.open_sources(Vec::new(), &no_namespace).unwrap().len(), 2);
    let attached = planned.plan.ops.iter().filter_map(|op| match &op.kind {
        Some(Kind::Attach(Attach { directory, fd, .. })) => Some((*fd, *directory)),
        _ => None,
    });
    let attached: Vec<_> = attached.collect();
    assert_eq!(attached, [(1, true), (2, false)]);
    value["mounts"] = json!([bind("missing")]);
    let error = ask(&value).unwrap().open_sources(Vec::new(), &no_namespace).unwrap_err().to_string();
    assert!(
        error.starts_with("mount source /") && error.ends_with("missing: no such file or directory"),
        "{error}"
    );
}

#[test]
fn what_is_set_and_not_supported_is_named() {
    let hooks = json!({"createRuntime": [{"path": "/bin/x"}]});
    assert_eq!(refused("/hooks", hooks), "hooks is not supported");
    assert_eq!(
        refused("/linux/namespaces/-", json!({"type": "time"})),
        "linux.namespaces[time] is not supported"
    );
    assert_eq!(
        refused("/process/apparmorProfile", json!("x\nexec unconfined")),
        "process.apparmorProfile: not one short line"
    );
    assert_eq!(refused("/process/selinuxLabel", json!("x:y")), "process.selinuxLabel is not supported (x:y)");
    assert_eq!(refused("/linux/sysctl", json!({"a.b": "1"})), "linux.sysctl is not supported");
    assert_eq!(
        refused("/linux/resources", json!({"memory": {"reservation": 5}})),
        "linux.resources.memory.reservation is not supported"
    );
}

#[test]
fn unknown_mounts_and_options_are_named_with_their_destination() {
    assert_eq!(
        refused("/mounts/7/options", json!(["rbind", "sync"])),
        "mounts[/data].options is not supported (\"sync\")"
    );
    assert_eq!(
        refused("/mounts/0/options", json!(["size=5"])),
        "mounts[/proc].options is not supported (\"size=5\")"
    );
    assert_eq!(
        refused("/mounts/0/options", json!(["rshared"])),
        "mounts[/proc].options is not supported (propagation of a new mount)"
    );
    let nfs = json!({"destination": "/net", "type": "nfs", "source": "x:/y"});
    assert_eq!(refused("/mounts/-", nfs), "mounts[/net].type is not supported (\"nfs\")");
    let over = json!({"destination": "/proc/self/attr", "type": "bind", "source": "/tmp"});
    assert_eq!(refused("/mounts/-", over), "mounts[/proc/self/attr]: a bind mount over /proc");
    let lxcfs = json!({"destination": "/proc/meminfo", "type": "bind", "source": "/tmp"});
    let mut value = web();
    value["mounts"].as_array_mut().unwrap().push(lxcfs);
    assert!(ask(&value).is_ok());
}

#[test]
fn values_that_make_no_sense_are_named() {
    assert_eq!(refused("/process/cwd", json!("srv")), "process.cwd: \"srv\" is not absolute");
    assert_eq!(refused("/process/args", json!([])), "process.args: empty");
    assert_eq!(
        refused("/process/oomScoreAdj", json!(1001)),
        "process.oomScoreAdj: 1001 is not within -1000 to 1000"
    );
    assert_eq!(refused("/process/env", json!(["A=\u{0}"])), "process.env: holds a NUL byte");
    let limit = json!([{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]);
    assert_eq!(
        refused("/process/rlimits", limit),
        "process.rlimits: RlimitCpu: soft limit 2 above hard limit 1"
    );
    assert_eq!(
        refused("/linux/namespaces", json!([])),
        "linux.namespaces: a container without a mount namespace"
    );
    assert_eq!(refused("/linux/maskedPaths", json!(["proc"])), "linux.maskedPaths: \"proc\" is not absolute");
}

#[test]
fn every_capability_of_the_spec_has_its_bit() {
    let mut value = web();
    for capability in caps::all() {
        let name = capability.to_string();
        value["process"]["capabilities"] = json!({"bounding": [name]});
        let process = ask(&value).unwrap().plan.process.unwrap();
        assert_eq!(process.capabilities.unwrap().bounding, capability.bitmask(), "{name}");
    }
}

#[test]
fn limits_are_taken_from_the_spec() {
    let limits: spec::LinuxResources = serde_json::from_value(json!({
        "memory": {"limit": 100, "swap": 150},
        "cpu": {"shares": 512, "quota": 20000, "period": 100000, "cpus": "0-1", "mems": "0"},
        "pids": {"limit": 7},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "unified": {"memory.oom.group": "1"}
    }))
    .unwrap();
    let expected = crate::cgroup::Resources {
        cpu_shares: 512,
        cpu_quota: 20_000,
        cpu_period: 100_000,
        memory_limit: 100,
        memory_swap: 150,
        pids: 7,
        cpuset_cpus: "0-1".into(),
        cpuset_mems: "0".into(),
        unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
        hugepages: vec![("2MB".to_owned(), 0)],
    };
    assert_eq!(resources(&limits).unwrap(), expected);
}

fn rules(value: Value) -> Result<Vec<crate::cgroup::DeviceRule>, String> {
    let list: Vec<spec::LinuxDeviceCgroup> = serde_json::from_value(value).unwrap();
    device_rules(&list).map_err(|error| error.to_string())
}

#[test]
fn device_rules_are_taken_from_the_spec() {
    use crate::cgroup::{DeviceAccess, DeviceKind, DeviceRule};
    let read = rules(json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 136, "minor": -1, "access": "wr"},
        {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "m"}
    ]));
    let (access, all) = (DeviceAccess::READ | DeviceAccess::WRITE, DeviceAccess::all());
    let (kind, major) = (Some(DeviceKind::Character), Some(136));
    let expected = [
        DeviceRule { allow: false, access: all, ..DeviceRule::ALLOW_ALL },
        DeviceRule { allow: true, kind, major, minor: None, access },
        DeviceRule {
            allow: true,
            kind: Some(DeviceKind::Block),
            major: Some(8),
            minor: Some(0),
            access: DeviceAccess::MKNOD,
        },
    ];
    assert_eq!(read.unwrap(), expected);
    assert_eq!(
        rules(json!([{"allow": true, "type": "a", "access": "rwm"}])),
        Ok(vec![DeviceRule::ALLOW_ALL])
    );
}

#[test]
fn device_rules_that_make_no_sense_are_named() {
    let refused = |rule: Value| rules(json!([{"allow": false}, rule])).unwrap_err();
    assert_eq!(
        refused(json!({"allow": true, "type": "p"})),
        "linux.resources.devices[1].type: a FIFO is no device"
    );
    assert_eq!(
        refused(json!({"allow": true, "major": -2})),
        "linux.resources.devices[1].major: device number -2"
    );
    assert_eq!(
        refused(json!({"allow": true, "access": "rx"})),
        "linux.resources.devices[1].access: \"rx\" is not made of r, w and m"
    );
    assert_eq!(
        self::refused("/linux/resources", json!({"devices": [{"allow": true, "type": "p"}]})),
        "linux.resources.devices[0].type: a FIFO is no device"
    );
}

/// [`web`] in a user namespace.
fn inside() -> Value {
    let mut value = web();
    value["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    for field in ["uidMappings", "gidMappings"] {
        value["linux"][field] = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    }
    value
}

#[test]
fn in_a_user_namespace_the_host_makes_the_devices() {
    let mut value = inside();
    let devices = value["linux"]["devices"].as_array_mut().unwrap();
    devices
        .push(json!({"path": "/opt/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600, "uid": 3}));
    devices.push(json!({"path": "/dev/shm/x", "type": "b", "major": 8, "minor": 0, "fileMode": 0o660}));
    let mounts = value["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/dev/shm", "type": "bind", "source": "/x", "options": ["rbind"],
        "uidMappings": [{"containerID": 0, "hostID": 7, "size": 1}],
        "gidMappings": [{"containerID": 0, "hostID": 8, "size": 1}]}));
    let planned = ask(&value).unwrap();
    insta::assert_snapshot!(planned.plan.to_string().lines().take(23).collect::<Vec<_>>().join("\n"), @r"
    plan: 8 descriptors, own cgroup namespace, user namespace fd 7, outside user 100101
      attach the root at /sys: private
      mount /proc (proc): nosuid,nodev,noexec [source=proc]
      mount /dev (bind): fd 5 (directory), set [] clear [], unchanged
      mount /dev/pts (devpts): nosuid,noexec [source=devpts,newinstance,ptmxmode=0666,mode=0620,gid=5]
      mount /dev/mqueue (mqueue): nosuid,nodev,noexec [source=mqueue]
      mount /sys (sysfs): ro,nosuid,nodev,noexec [source=sysfs]
      mount /sys/fs/cgroup (cgroup2): ro,nosuid,nodev,noexec [source=cgroup]
      mount /etc/hosts (bind): fd 1 (file), set [] clear [], private and below
      mount /data (bind): fd 2 (file), set [ro,noatime] clear [atime], slave and below
      mount /frozen (bind): fd 3 (file), set [] clear [] set below, too [ro], private and below
      mount /dev/shm (bind): fd 4 (file), set [] clear [], unchanged
      create link /dev/ptmx -> pts/ptmx
      create link /dev/fd -> /proc/self/fd
      create link /dev/stdin -> /proc/self/fd/0
      create link /dev/stdout -> /proc/self/fd/1
      create link /dev/stderr -> /proc/self/fd/2
      create device /opt/zero: c 1:5 0600 3:0, node 1
      create device /dev/shm/x: b 8:0 0660 0:0, node 2
      create directory /srv: 0755
      make /proc/sys read-only
      mask /proc/kcore
      mask /sys/firmware
    ");
    let [Made::Dev { options, attributes, owner, nodes }, Made::Kit(kit)] = planned.made.as_slice() else {
        panic!("{:?}", planned.made)
    };
    assert_eq!(options, &["source=tmpfs", "mode=755", "size=65536k", "uid=100000", "gid=100000"]);
    assert_eq!(*attributes, MountAttr::NOSUID | MountAttr::STRICTATIME);
    assert_eq!(*owner, (100_000, 100_000));
    let said = |node: &Node| format!("{} {}:{} {}:{}", node.path, node.major, node.minor, node.uid, node.gid);
    let said: Vec<String> = nodes.iter().chain(kit).map(said).collect();
    let wanted = [
        "null 1:3 100000:100000",
        "zero 1:5 100000:100000",
        "full 1:7 100000:100000",
        "random 1:8 100000:100000",
        "urandom 1:9 100000:100000",
        "tty 5:0 100000:100000",
        // The host's own owners: its root is nobody inside.
        "fuse 10:229 0:44",
        "/opt/zero 1:5 3:0",
        "/dev/shm/x 8:0 0:0",
    ];
    assert_eq!(said, wanted);
    let idmaps: Vec<_> = planned.sources.iter().map(|source| source.idmap.is_some()).collect();
    assert_eq!(idmaps, [false, false, false, true]);
}

#[test]
fn r35_mappings_that_cannot_be_are_named() {
    let range = |container: u64, host: u64, size: u64| json!({"containerID": container, "hostID": host, "size": size});
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut value = inside();
        change(&mut value);
        ask(&value).unwrap_err().to_string()
    };
    let with = |field: &'static str, list: Value| refused(&|value| value["linux"][field] = list.clone());
    assert_eq!(with("uidMappings", json!([])), "linux.uidMappings: no mapping");
    assert_eq!(with("gidMappings", json!([range(0, 5, 0)])), "linux.gidMappings: [0]: length 0");
    assert_eq!(
        with("uidMappings", json!([range(0, 5, 9), range(8, 50, 9)])),
        "linux.uidMappings: [0] and [1] overlap"
    );
    assert_eq!(
        with("gidMappings", json!([range(1, 5, 9)])),
        "linux.gidMappings: id 0 has no place, and the container is built as root"
    );
    assert_eq!(
        with("uidMappings", json!([range(0, 5, 101)])),
        "process.user.uid: id 101 has no place in the container's user namespace"
    );
    assert_eq!(
        with("gidMappings", json!([range(0, 5, 2000)])),
        "process.user.gid: id 2000 has no place in the container's user namespace"
    );
    let alone = refused(&|value| value["linux"]["namespaces"] = json!([{"type": "mount"}]));
    assert_eq!(alone, "linux.uidMappings: given without a user namespace");
    let path = refused(&|value| value["linux"]["namespaces"][3]["path"] = json!("/proc/1/ns/user"));
    assert_eq!(path, "linux.namespaces[user].path is not supported (/proc/1/ns/user)");
    let mount = refused(&|value| value["mounts"][6]["uidMappings"] = json!([range(0, 5, 1)]));
    assert_eq!(mount, "mounts[/etc/hosts].gidMappings: no mapping");
    let fresh = refused(&|value| value["mounts"][1]["uidMappings"] = json!([range(0, 5, 1)]));
    assert_eq!(fresh, "mounts[/dev].uidMappings is not supported (of a new mount)");
}
