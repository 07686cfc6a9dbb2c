//! Spec files as drivers write them, and as nobody should.

use std::{fs, os::unix::fs::symlink, path::Path};

use oci_spec::runtime::LinuxDeviceType;

use super::*;

fn user(uid: u32) -> UserRecord {
    UserRecord { uid, gid: uid, groups: vec![uid] }
}

fn request(names: &[&str]) -> cri::ContainerConfig {
    let device = |name: &&str| cri::CdiDevice { name: (*name).to_owned() };
    cri::ContainerConfig { cdi_devices: names.iter().map(device).collect(), ..Default::default() }
}

struct Folders {
    tmp: tempfile::TempDir,
    all: Vec<String>,
}

impl Folders {
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let all = ["low", "high"].map(|name| tmp.path().join(name).display().to_string());
        for path in &all {
            fs::create_dir(path).unwrap();
        }
        Self { tmp, all: all.into() }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.tmp.path().join(name), text).unwrap();
    }

    fn edits(&self, names: &[&str]) -> Result<Edits, RequestError> {
        edits(&self.all, &request(names), &user(0))
    }

    /// The error for `name`, which has to name it.
    fn refused(&self, name: &str) -> String {
        let error = self.edits(&["ok.com/d=0", name]).unwrap_err();
        assert!(error.text.contains("CDI_devices[1]") && error.text.contains(name), "{error}");
        error.text
    }
}

/// What a driver writes for a device whose only change is a variable.
fn simple(kind: &str, name: &str, value: &str) -> String {
    format!(
        r#"{{"cdiVersion":"0.6.0","kind":"{kind}","annotations":{{"a":"b"}},"devices":[{{"name":"{name}",
            "annotations":null,"containerEdits":{{"env":["WHICH={value}"]}}}}]}}"#
    )
}

fn env(edits: &Edits, name: &str) -> Option<String> {
    edits.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
}

#[test]
fn a_spec_in_yaml_changes_a_container() {
    let folders = Folders::new();
    let host = folders.tmp.path().display().to_string();
    folders.write(
        "low/vendor.yaml",
        &format!(
            r#"---
cdiVersion: 0.8.0
kind: vendor.com/gpu
containerEdits:
  env:
    - COMMON=1
    - WHICH=common
  additionalGids: [44, 0, 44]
devices:
  - name: "0"
    containerEdits:
      env: [WHICH=zero]
      deviceNodes:
        - path: /dev/gpu0
          hostPath: /dev/null
          fileMode: 0640
          permissions: rw
        - path: /dev/zero
        - path: /dev/made
          type: b
          major: 250
          minor: 3
          uid: 5
          permissions: none
      mounts:
        - hostPath: {host}
          containerPath: /usr/./lib/vendor/
          options: [ro, nosuid]
        - hostPath: {host}
          containerPath: /opt/vendor
          type: bind
          options: [bind, rslave]
  - name: all:x
    containerEdits:
      env: [WHICH=all]
"#
        ),
    );
    let edits =
        edits(&folders.all, &request(&["vendor.com/gpu=0", "vendor.com/gpu=all:x"]), &user(1000)).unwrap();
    assert_eq!((env(&edits, "COMMON").as_deref(), env(&edits, "WHICH").as_deref()), (Some("1"), Some("all")));
    assert_eq!(edits.groups, [44]);
    let [gpu, zero, made] = edits.nodes.as_slice() else { panic!("{:?}", edits.nodes) };
    assert_eq!((gpu.device.major(), gpu.device.minor(), gpu.access.as_str()), (1, 3, "rw"));
    assert_eq!(
        (gpu.device.file_mode(), gpu.device.uid(), gpu.device.gid()),
        (Some(0o640), Some(1000), Some(1000))
    );
    assert_eq!((zero.device.major(), zero.device.minor(), zero.access.as_str()), (1, 5, "rwm"));
    assert_eq!(zero.device.file_mode(), Some(0o666));
    assert_eq!((made.device.typ(), made.device.major(), made.device.minor()), (LinuxDeviceType::B, 250, 3));
    assert_eq!((made.device.uid(), made.access.as_str()), (Some(5), ""));
    let [first, second] = edits.mounts.as_slice() else { panic!("{:?}", edits.mounts) };
    assert_eq!(first.destination(), Path::new("/usr/lib/vendor"));
    assert_eq!(first.options().as_deref().unwrap(), ["ro", "nosuid", "rbind", "rprivate"]);
    assert_eq!(second.options().as_deref().unwrap(), ["bind", "rslave"]);
}

#[test]
fn names_come_from_the_field_and_from_annotations() {
    let folders = Folders::new();
    folders.write("low/a.json", &simple("ok.com/d", "0", "zero"));
    folders.write("low/b.json", &simple("ok.com/e", "1", "one"));
    let annotate = |config: &mut cri::ContainerConfig, key: &str, value: &str| {
        config.annotations.insert(key.to_owned(), value.to_owned());
    };
    let mut config = cri::ContainerConfig::default();
    annotate(&mut config, "cdi.k8s.io/plugin_x", "ok.com/d=0,ok.com/e=1");
    annotate(&mut config, "cdi.k8s.iox/other", "ok.com/none=7");
    let found = edits(&folders.all, &config, &user(0)).unwrap();
    assert_eq!(env(&found, "WHICH").as_deref(), Some("one"));
    annotate(&mut config, "cdi.k8s.io/plugin_y", "ok.com/d=0,");
    let error = edits(&folders.all, &config, &user(0)).unwrap_err();
    assert!(error.text.contains("annotations[cdi.k8s.io/plugin_y]"), "{error}");
    assert_eq!(edits(&[], &cri::ContainerConfig::default(), &user(0)), Ok(Edits::default()));
    let error = edits(&[], &request(&["ok.com/d=0"]), &user(0)).unwrap_err();
    assert!(error.text.contains("cdi_spec_dirs"), "{error}");
}

#[test]
fn c08_a_later_directory_wins_and_two_of_one_directory_contradict_each_other() {
    let folders = Folders::new();
    folders.write("low/a.json", &simple("ok.com/d", "0", "low"));
    assert_eq!(env(&folders.edits(&["ok.com/d=0"]).unwrap(), "WHICH").as_deref(), Some("low"));
    folders.write("high/z.json", &simple("ok.com/d", "0", "high"));
    assert_eq!(env(&folders.edits(&["ok.com/d=0"]).unwrap(), "WHICH").as_deref(), Some("high"));
    folders.write("low/b.json", &simple("twice.com/d", "0", "b"));
    folders.write("low/c.json", &simple("twice.com/d", "0", "c"));
    let error = folders.refused("twice.com/d=0");
    assert!(error.contains("b.json") && error.contains("c.json"), "{error}");
    folders.write("high/b.json", &simple("twice.com/d", "0", "settled"));
    assert_eq!(env(&folders.edits(&["twice.com/d=0"]).unwrap(), "WHICH").as_deref(), Some("settled"));
}

#[test]
fn c08_names_that_are_none_or_that_nobody_has_are_named() {
    let folders = Folders::new();
    folders.write("low/a.json", &simple("ok.com/d", "0", "x"));
    for name in [
        "",
        "x",
        "ok.com",
        "ok.com/d",
        "ok.com/d=",
        "=0",
        "/d=0",
        "ok.com/=0",
        "../../etc/x=0",
        "ok.com/../d=0",
        "ok.com/d=../../0",
        "ok.com/d=0/1",
        "1ok/d=0",
        "ok.com/d=-0",
        "ok.com/d=0\n",
        "ok.com/d=0 ",
        "ök.com/d=0",
    ] {
        let error = folders.edits(&["ok.com/d=0", name]).unwrap_err();
        assert!(
            error.text.contains("CDI_devices[1]") && error.text.contains(&format!("{name:?}")),
            "{error}"
        );
    }
    for name in ["no.com/d=0", "ok.com/d=1", "ok.com/e=0"] {
        let error = folders.refused(name);
        assert!(folders.all.iter().all(|folder| error.contains(folder)), "{error}");
    }
}

#[test]
fn c08_only_files_of_the_directories_are_read() {
    let folders = Folders::new();
    folders.write("low/ok.json", &simple("ok.com/d", "0", "x"));
    folders.write("outside.json", &simple("evil.com/d", "0", "x"));
    let at = |name: &str| folders.tmp.path().join(name);
    symlink(at("outside.json"), at("low/absolute.json")).unwrap();
    symlink("../outside.json", at("low/relative.json")).unwrap();
    symlink("/dev/zero", at("low/zero.json")).unwrap();
    fs::create_dir(at("low/folder.json")).unwrap();
    fs::create_dir(at("low/inner")).unwrap();
    folders.write("low/inner/x.json", &simple("inner.com/d", "0", "x"));
    folders.write("low/other.txt", &simple("text.com/d", "0", "x"));
    let large = fs::File::create(at("high/large.json")).unwrap();
    large.set_len(8 << 30).unwrap();
    for name in ["evil.com/d=0", "inner.com/d=0", "text.com/d=0"] {
        let error = folders.refused(name);
        for file in ["absolute.json", "relative.json", "zero.json", "folder.json", "large.json"] {
            assert!(error.contains(file), "no {file}: {error}");
        }
    }
    // A link inside the directory, as volumes of config maps have them.
    symlink("inner/x.json", at("low/linked.json")).unwrap();
    assert!(folders.edits(&["inner.com/d=0", "ok.com/d=0"]).is_ok());
}

#[test]
fn c08_what_cannot_be_done_is_refused_with_the_file() {
    let folders = Folders::new();
    folders.write("low/ok.json", &simple("ok.com/d", "0", "x"));
    for (edits, named) in [
        (r#"{"hooks":[{"hookName":"createContainer","path":"/bin/evil","args":["x"]}]}"#, "/bin/evil"),
        (r#"{"intelRdt":{"closID":"x"}}"#, "intelRdt"),
        (r#"{"netDevices":[{"hostInterfaceName":"eth0","name":"eth1"}]}"#, "netDevices"),
        (r#"{"env":["=x"]}"#, "env"),
        (r#"{"deviceNodes":[{"path":"/dev/../etc/x"}]}"#, "/dev/../etc/x"),
        (r#"{"deviceNodes":[{"path":"/etc/passwd"}]}"#, "not a device"),
        (r#"{"deviceNodes":[{"path":"/dev/no-such-device"}]}"#, "no such file"),
        (r#"{"deviceNodes":[{"path":"/dev/null","type":"b"}]}"#, "type b"),
        (r#"{"deviceNodes":[{"path":"/dev/null","type":"x"}]}"#, "type \"x\""),
        (r#"{"deviceNodes":[{"path":"/dev/null","permissions":"rwx"}]}"#, "rwx"),
        (r#"{"deviceNodes":[{"path":"/dev/null","major":-1}]}"#, "-1"),
        (r#"{"mounts":[{"hostPath":"/no/such/path","containerPath":"/x"}]}"#, "/no/such/path"),
        (r#"{"mounts":[{"hostPath":"/tmp","containerPath":"/a/../b"}]}"#, "/a/../b"),
        (r#"{"mounts":[{"hostPath":"/tmp","containerPath":"/"}]}"#, "root"),
        // A file that is not understood is not used at all.
        (r#"{"newThing":1}"#, "newThing"),
        (r#"{"deviceNodes":[{"path":"/dev/null","newThing":1}]}"#, "newThing"),
    ] {
        let text = format!(
            r#"{{"cdiVersion":"1.1.0","kind":"bad.com/d","devices":[{{"name":"0","containerEdits":{edits}}}]}}"#
        );
        folders.write("low/bad.json", &text);
        let error = folders.refused("bad.com/d=0");
        assert!(error.contains("bad.json") && error.contains(named), "{named}: {error}");
        assert!(folders.edits(&["ok.com/d=0"]).is_ok(), "the others are there");
    }
    for (text, named) in [
        ("{", "EOF"),
        (r#"{"kind":"bad.com/d","devices":[]}"#, "cdiVersion"),
        (r#"{"cdiVersion":"0.1.0","kind":"bad.com/d","devices":[]}"#, "0.1.0"),
        (r#"{"cdiVersion":"9.0.0","kind":"bad.com/d","devices":[]}"#, "9.0.0"),
        (r#"{"cdiVersion":"0.6.0","kind":"bad.com","devices":[]}"#, "vendor/class"),
        (r#"{"cdiVersion":"0.6.0","kind":"bad.com/d","devices":[{"name":"../0"}]}"#, "../0"),
        (r#"{"cdiVersion":"0.6.0","kind":"bad.com/d","devices":[{"name":"0"},{"name":"0"}]}"#, "twice"),
    ] {
        folders.write("low/bad.json", text);
        let error = folders.refused("bad.com/d=0");
        assert!(error.contains("bad.json") && error.contains(named), "{named}: {error}");
    }
}

#[test]
fn c08_a_yaml_file_that_unfolds_without_end_is_refused() {
    let folders = Folders::new();
    folders.write("low/ok.json", &simple("ok.com/d", "0", "x"));
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..30 {
        let inner = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
    }
    folders.write("low/bomb.yaml", &text);
    folders.write("low/deep.yaml", &"[".repeat(1 << 20));
    folders.write("low/deep.json", &"[".repeat(1 << 20));
    let error = folders.refused("bad.com/d=0");
    assert!(["bomb.yaml", "deep.yaml", "deep.json"].iter().all(|name| error.contains(name)), "{error}");
}
