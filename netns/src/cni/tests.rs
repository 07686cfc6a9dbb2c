//! Chains of plugins: what each is told, what stays on file, what happens after a failure. The plugins are scripts that
//! note how they were called, and do what files beside them say.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::exec::tests::{Groups, script};
use super::*;

/// Notes `<name> <command> <namespace>` and its input; with a file `fail-<name>-<command>` beside it, it runs that.
const PLUGIN: &str = r#"
me=${0##*/}; top=${0%/bin/*}
echo "$me $CNI_COMMAND ${CNI_NETNS-unset}" >>$top/calls
cat >$top/input-$me-$CNI_COMMAND
if [ -e $top/fail-$me-$CNI_COMMAND ]; then . $top/fail-$me-$CNI_COMMAND; fi
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/x"}],
  "ips":[{"interface":0,"address":"fd00::7/64"},{"interface":0,"address":"10.0.0.7/24"}],"by":"'$me'"}' ;;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.1.0"]}' ;;
esac
"#;

struct World {
    folder: tempfile::TempDir,
    cni: Cni,
}

impl World {
    fn new(version: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["conf", "bin", "empty"] {
            fs::create_dir(at(name)).unwrap();
        }
        for name in ["one", "two", "three"] {
            script(&at("bin"), name, PLUGIN);
        }
        let plugins =
            ["one", "two", "three"].map(|kind| json!({ "type": kind, "capabilities": { "dns": true } }));
        let list = json!({ "cniVersion": version, "name": "net", "plugins": plugins });
        fs::write(at("conf").join("10.conflist"), list.to_string()).unwrap();
        let cni = Self::open(folder.path());
        Self { folder, cni }
    }

    fn open(folder: &Path) -> Cni {
        let settings = Settings {
            conf_dir: folder.join("conf"),
            bin_dirs: vec![folder.join("empty"), folder.join("bin")],
            limit: Duration::from_secs(120),
            ledger: folder.join("ledger"),
        };
        Cni::open(settings, Arc::new(Groups)).unwrap()
    }

    fn fail(&self, plugin: &str, verb: &str, text: &str) {
        fs::write(self.folder.path().join(format!("fail-{plugin}-{verb}")), text).unwrap();
    }

    fn mend(&self) {
        for entry in fs::read_dir(self.folder.path()).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("fail-") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    }

    /// What was called since the last time.
    fn calls(&self) -> Vec<String> {
        let path = self.folder.path().join("calls");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(&path);
        text.lines().map(str::to_owned).collect()
    }

    fn input(&self, plugin: &str, verb: &str) -> Value {
        let path = self.folder.path().join(format!("input-{plugin}-{verb}"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    fn attach(&self) -> Result<AttachResult, CniError> {
        let mut capabilities = Map::new();
        capabilities.insert("dns".to_owned(), json!({ "servers": ["1.1.1.1"] }));
        let attachment = Attachment {
            container_id: "pod".to_owned(),
            netns: "/ns".into(),
            ifname: "eth0".to_owned(),
            args: Vec::new(),
            capabilities,
        };
        self.cni.attach(&self.cni.network()?, attachment)
    }

    fn entry(&self) -> Option<Entry> {
        self.cni.ledger().read("pod", "eth0").unwrap()
    }
}

#[test]
fn add_goes_forward_and_del_backward_with_what_was_on_file() {
    let world = World::new("1.0.0");
    let result = world.attach().unwrap();
    assert_eq!(result.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.7", "fd00::7"]);
    assert_eq!(world.calls(), ["one ADD /ns", "two ADD /ns", "three ADD /ns"]);
    assert!(world.input("one", "ADD").get("prevResult").is_none());
    assert_eq!(world.input("two", "ADD")["prevResult"]["by"], "one");
    assert_eq!(world.input("three", "ADD")["runtimeConfig"]["dns"]["servers"][0], "1.1.1.1");
    assert!(world.entry().unwrap().complete);
    // The list is gone, the process was another one, and the namespace is gone as well.
    fs::remove_dir_all(world.folder.path().join("conf")).unwrap();
    World::open(world.folder.path()).detach("pod", "eth0", false).unwrap();
    assert_eq!(world.calls(), ["three DEL ", "two DEL ", "one DEL "]);
    let told = world.input("one", "DEL");
    assert_eq!(
        (&told["prevResult"]["by"], &told["runtimeConfig"]),
        (&json!("three"), &json!({"dns": {"servers": ["1.1.1.1"]}}))
    );
    assert_eq!(world.entry(), None);
    world.cni.detach("pod", "eth0", true).unwrap();
    assert!(world.calls().is_empty());
}

#[test]
fn a_failed_add_is_undone_at_once_and_names_plugin_and_command() {
    let world = World::new("1.0.0");
    world.fail("two", "ADD", r#"echo '{"code":7,"msg":"no"}'; exit 1"#);
    let error = world.attach().unwrap_err();
    assert_eq!(error.to_string(), "CNI network net: ADD of plugin two: no (code 7)");
    assert_eq!(world.calls(), ["one ADD /ns", "two ADD /ns", "three DEL /ns", "two DEL /ns", "one DEL /ns"]);
    // DEL gets what the chain had come to.
    assert_eq!(world.input("one", "DEL")["prevResult"]["by"], "one");
    assert_eq!(world.entry(), None);
}

#[test]
fn what_cannot_be_undone_stays_on_file_until_it_can() {
    let world = World::new("1.0.0");
    world.fail("three", "ADD", "echo garbage; exit 0");
    world.fail("two", "DEL", "echo stuck >&2; exit 9");
    let error = world.attach().unwrap_err().to_string();
    assert!(error.starts_with("CNI network net: ADD of plugin three: its result: expected value"), "{error}");
    assert!(error.ends_with("DEL of plugin two: exit status: 9: stuck"), "{error}");
    assert_eq!(world.calls().len(), 6);
    let entry = world.entry().unwrap();
    assert!(!entry.complete && entry.result.unwrap()["by"] == "two");
    assert!(world.cni.detach("pod", "eth0", true).is_err());
    // All plugins are asked each time.
    assert_eq!(world.calls(), ["three DEL /ns", "two DEL /ns", "one DEL /ns"]);
    world.mend();
    World::open(world.folder.path()).detach("pod", "eth0", true).unwrap();
    assert_eq!(world.entry(), None);
}

#[test]
fn an_intent_without_any_result_is_enough_to_give_back() {
    let world = World::new("1.0.0");
    // What a process that was killed in the first ADD leaves behind.
    world.fail("one", "ADD", "cp $top/ledger/* $top/saved; exit 1");
    assert!(world.attach().is_err());
    world.mend();
    world.calls();
    fs::copy(world.folder.path().join("saved"), world.folder.path().join("ledger/pod:eth0.json")).unwrap();
    World::open(world.folder.path()).detach("pod", "eth0", true).unwrap();
    assert_eq!(world.calls(), ["three DEL /ns", "two DEL /ns", "one DEL /ns"]);
    assert!(world.input("one", "DEL").get("prevResult").is_none());
}

#[test]
fn what_is_missed_in_a_namespace_that_is_gone_is_no_failure() {
    let world = World::new("1.0.0");
    world.attach().unwrap();
    world.fail("two", "DEL", r#"echo '{"code":3,"msg":"link not found"}'; exit 1"#);
    assert!(world.cni.detach("pod", "eth0", true).is_err());
    world.cni.detach("pod", "eth0", false).unwrap();
    assert_eq!(world.entry(), None);
}

#[test]
fn a_chain_without_an_address_is_a_failure() {
    let world = World::new("1.1.0");
    world.fail("three", "ADD", r#"echo '{"cniVersion":"1.1.0","ips":[]}'; exit 0"#);
    let error = world.attach().unwrap_err().to_string();
    assert_eq!(error, "CNI network net: ADD of plugin three: its result: there is no address for eth0");
    world.fail("three", "ADD", r#"echo '{"cniVersion":"1.1.0","ips":[{"address":"x"}]}'; exit 0"#);
    let error = world.attach().unwrap_err().to_string();
    assert!(error.contains("ADD of plugin three: its result: ips[0].address \"x\""), "{error}");
    assert_eq!(world.entry(), None);
}

#[test]
fn a_missing_plugin_is_named_with_where_it_was_looked_for() {
    let world = World::new("1.0.0");
    fs::remove_file(world.folder.path().join("bin/three")).unwrap();
    let error = world.attach().unwrap_err().to_string();
    assert!(error.contains("ADD of plugin three: there is no program of this name in"), "{error}");
    // It cannot be asked to give back either; until it is there again.
    assert!(world.entry().is_some());
    script(&world.folder.path().join("bin"), "three", PLUGIN);
    world.cni.detach("pod", "eth0", true).unwrap();
}

#[test]
fn check_gc_and_status_are_asked_of_versions_that_have_them() {
    for (version, check, newer) in [("0.3.1", false, false), ("0.4.0", true, false), ("1.1.0", true, true)] {
        let world = World::new(version);
        let list = world.cni.network().unwrap();
        world.attach().unwrap();
        world.calls();
        world.cni.check("pod", "eth0").unwrap();
        assert_eq!(world.calls().len(), if check { 3 } else { 0 }, "{version}");
        world.cni.collect(&list).unwrap();
        assert_eq!(
            world.calls(),
            if newer { vec!["one GC unset", "two GC unset", "three GC unset"] } else { vec![] }
        );
        world.cni.status(&list).unwrap();
        assert_eq!(world.calls().len(), if newer { 3 } else { 0 }, "{version}");
        if newer {
            let told = world.input("one", "GC");
            let valid = json!([{ "containerID": "pod", "ifname": "eth0" }]);
            assert_eq!((&told["cni.dev/valid-attachments"], &told["cni.dev/attachments"]), (&valid, &valid));
            world.fail("two", "STATUS", r#"echo '{"code":50,"msg":"no leases"}'; exit 1"#);
            let error = world.cni.status(&list).unwrap_err();
            assert_eq!(error.plugin().and_then(|error| error.failure.code()), Some(50));
            assert_eq!(error.to_string(), "CNI network net: STATUS of plugin two: no leases (code 50)");
            let quiet = NetworkList { disable_gc: true, ..list.clone() };
            world.calls();
            world.cni.collect(&quiet).unwrap();
            assert!(world.calls().is_empty());
        }
        world.cni.detach("pod", "eth0", true).unwrap();
        // Versions before 0.4.0 have no result in DEL.
        assert_eq!(world.input("one", "DEL").get("prevResult").is_some(), check);
        let supported = world.cni.versions(&list, &list.plugins[0]).unwrap();
        assert!(supported.contains("1.1.0"));
    }
}
