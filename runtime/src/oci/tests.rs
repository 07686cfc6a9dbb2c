use super::*;
use crate::plan::Attach;
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
    insta::assert_snapshot!(exec_plan(&process, None).unwrap(), @r#"
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
    assert_eq!(planned.open_sources(Vec::new()).unwrap().len(), 2);
    let attached = planned.plan.ops.iter().filter_map(|op| match &op.kind {
        Some(Kind::Attach(Attach { directory, fd, .. })) => Some((*fd, *directory)),
        _ => None,
    });
    let attached: Vec<_> = attached.collect();
    assert_eq!(attached, [(1, true), (2, false)]);
    value["mounts"] = json!([bind("missing")]);
    let error = ask(&value).unwrap().open_sources(Vec::new()).unwrap_err().to_string();
    assert!(
        error.starts_with("mount source /") && error.ends_with("missing: no such file or directory"),
        "{error}"
    );
}

#[test]
fn what_is_set_and_not_supported_is_named() {
    let hooks = json!({"createRuntime": [{"path": "/bin/x"}]});
    assert_eq!(refused("/hooks", hooks), "hooks is not supported");
    let mappings = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    assert_eq!(refused("/linux/uidMappings", mappings.clone()), "linux.uidMappings is not supported");
    assert_eq!(refused("/mounts/7/uidMappings", mappings), "mounts[/data].uidMappings is not supported");
    assert_eq!(
        refused("/linux/namespaces/-", json!({"type": "user"})),
        "linux.namespaces[user] is not supported"
    );
    assert_eq!(
        refused("/process/apparmorProfile", json!("x")),
        "process.apparmorProfile is not supported (x)"
    );
    assert_eq!(refused("/process/selinuxLabel", json!("x:y")), "process.selinuxLabel is not supported (x:y)");
    assert_eq!(refused("/process/terminal", json!(true)), "process.terminal is not supported");
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
