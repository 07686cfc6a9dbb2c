use serde_json::json;

use super::*;

fn attachment() -> Attachment {
    let capabilities = json!({ "portMappings": [{ "hostPort": 1 }], "dns": {}, "mac": "x" });
    Attachment {
        container_id: "c-1".to_owned(),
        netns: "/run/netns/x".into(),
        ifname: "eth0".to_owned(),
        args: vec![
            ("IgnoreUnknown".to_owned(), "1".to_owned()),
            ("K8S_POD_NAME".to_owned(), "web".to_owned()),
        ],
        capabilities: capabilities.as_object().cloned().unwrap(),
    }
}

#[test]
fn a_plugin_gets_the_capabilities_that_it_declares_and_no_other() {
    let list = json!({
        "cniVersion": "1.0.0", "name": "n",
        "plugins": [
            { "type": "a", "capabilities": { "portMappings": true, "dns": false, "bandwidth": true }, "own": 1,
              "runtimeConfig": { "mac": "y" }, "prevResult": {} },
            { "type": "b" },
        ],
    });
    let list = NetworkList::of_json(&list).unwrap();
    let told = |plugin: usize, previous: Option<&Value>| {
        Value::Object(input(&list, &list.plugins[plugin], Some(&attachment()), previous))
    };
    let first = told(0, None);
    assert_eq!(first["runtimeConfig"], json!({ "portMappings": [{ "hostPort": 1 }] }));
    assert_eq!(
        (&first["name"], &first["cniVersion"], &first["own"]),
        (&json!("n"), &json!("1.0.0"), &json!(1))
    );
    assert!(first.get("prevResult").is_none());
    let second = told(1, Some(&json!({ "ips": [] })));
    assert!(second.get("runtimeConfig").is_none());
    assert_eq!(second["prevResult"], json!({ "ips": [] }));
}

#[test]
fn the_environment_is_the_specifications() {
    let dirs = ["/a".into(), "/b".into()];
    let all = environment(Verb::Add, Some(&attachment()), &dirs);
    let get = |name: &str| all.iter().find(|(key, _)| *key == name).and_then(|(_, value)| value.clone());
    assert_eq!(get("CNI_COMMAND").as_deref(), Some("ADD"));
    assert_eq!(get("CNI_PATH").as_deref(), Some("/a:/b"));
    assert_eq!(get("CNI_ARGS").as_deref(), Some("IgnoreUnknown=1;K8S_POD_NAME=web"));
    assert_eq!(get("CNI_NETNS").as_deref(), Some("/run/netns/x"));
    // What the daemon itself may have in its environment must not reach a plugin that is asked about the node.
    let status = environment(Verb::Status, None, &dirs);
    let unset: Vec<_> = status.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| *name).collect();
    assert!(
        ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"].iter().all(|name| unset.contains(name))
    );
}

#[test]
fn no_value_sets_another_one() {
    assert_eq!(attachment().check(), Ok(()));
    let with = |change: fn(&mut Attachment)| {
        let mut changed = attachment();
        change(&mut changed);
        changed.check().unwrap_err().to_string()
    };
    assert!(
        with(|a| a.args[1].1 = "x;K8S_POD_NAMESPACE=kube-system".into()).contains("argument K8S_POD_NAME")
    );
    assert!(with(|a| a.args[1].1 = "x\n".into()).contains("argument K8S_POD_NAME"));
    assert!(with(|a| a.container_id = "../x".into()).contains("container id"));
    assert!(with(|a| a.ifname = "a/b".into()).contains("interface"));
    assert!(with(|a| a.ifname = "sixteen-bytes-xx".into()).contains("interface"));
}
