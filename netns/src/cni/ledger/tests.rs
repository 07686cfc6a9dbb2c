use serde_json::json;

use super::*;

fn entry(id: &str) -> Entry {
    let list = json!({ "cniVersion": "1.0.0", "name": "n", "plugins": [{ "type": "a", "own": [1] }] });
    Entry {
        list: NetworkList::of_json(&list).unwrap(),
        attachment: Attachment {
            container_id: id.to_owned(),
            netns: "/run/netns/x".into(),
            ifname: "eth0.5".to_owned(),
            args: vec![("a".to_owned(), "b".to_owned())],
            capabilities: serde_json::Map::new(),
        },
        result: None,
        complete: false,
    }
}

#[test]
fn an_entry_is_found_again_until_it_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Ledger::open(folder.path().join("ledger")).unwrap();
    let mut written = entry("id.1");
    open().write_synced(&written).unwrap();
    assert_eq!(open().read("id.1", "eth0.5").unwrap().unwrap(), written);
    written.result = Some(json!({ "ips": [] }));
    written.complete = true;
    open().write_kept(&written).unwrap();
    assert_eq!(open().read("id.1", "eth0.5").unwrap().unwrap(), written);
    assert_eq!(open().keys().unwrap(), [("id.1".to_owned(), "eth0.5".to_owned())]);
    assert_eq!(open().read("id.1", "eth0").unwrap(), None);
    open().forget("id.1", "eth0.5").unwrap();
    open().forget("id.1", "eth0.5").unwrap();
    assert!(open().keys().unwrap().is_empty());
    assert_eq!(fs::read_dir(folder.path().join("ledger")).unwrap().count(), 0);
}

#[test]
fn a_write_that_was_cut_off_leaves_the_entry_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path().to_owned()).unwrap();
    ledger.write_synced(&entry("a")).unwrap();
    fs::write(folder.path().join("a:eth0.5.new"), "{\"version\":1,").unwrap();
    fs::write(folder.path().join("b:eth0.new"), "").unwrap();
    let ledger = Ledger::open(folder.path().to_owned()).unwrap();
    assert_eq!(ledger.read("a", "eth0.5").unwrap().unwrap(), entry("a"));
    assert_eq!(ledger.keys().unwrap().len(), 1);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn what_cannot_be_read_is_listed_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path().to_owned()).unwrap();
    fs::write(folder.path().join("x:eth0.json"), "{").unwrap();
    fs::write(folder.path().join("y:eth0.json"), r#"{"version":9}"#).unwrap();
    ledger.write_synced(&entry("a")).unwrap();
    fs::copy(folder.path().join("a:eth0.5.json"), folder.path().join("z:eth0.json")).unwrap();
    for (id, reason) in [("x", "EOF"), ("y", "missing field"), ("z", "another attachment")] {
        let error = ledger.read(id, "eth0").unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains(&format!("{id}:eth0.json")), "{error}");
    }
    assert_eq!(ledger.keys().unwrap().len(), 4);
}
