use super::*;
use crate::error::Class;

fn range(container_id: u32, host_id: u32, length: u32) -> cri::IdMapping {
    cri::IdMapping { container_id, host_id, length }
}

fn options(
    mode: cri::NamespaceMode,
    uids: &[cri::IdMapping],
    gids: &[cri::IdMapping],
) -> cri::NamespaceOption {
    let userns = cri::UserNamespace { mode: mode.into(), uids: uids.to_vec(), gids: gids.to_vec() };
    cri::NamespaceOption { userns_options: Some(userns), ..Default::default() }
}

fn pod(list: &[cri::IdMapping]) -> cri::NamespaceOption {
    options(cri::NamespaceMode::Pod, list, list)
}

fn refused(options: &cri::NamespaceOption) -> String {
    let error = wanted(Some(options)).unwrap_err();
    assert_eq!(error.class, Class::Invalid);
    error.text
}

#[test]
fn nothing_and_node_mean_the_hosts() {
    assert_eq!(wanted(None).unwrap(), None);
    assert_eq!(wanted(Some(&cri::NamespaceOption::default())).unwrap(), None);
    assert_eq!(wanted(Some(&options(cri::NamespaceMode::Node, &[], &[]))).unwrap(), None);
}

#[test]
fn a_pods_range_is_taken() {
    let mappings = wanted(Some(&pod(&[range(0, 65536, 65536)]))).unwrap().unwrap();
    assert_eq!((mappings.host_uid(0), mappings.host_gid(65535)), (Some(65536), Some(131_071)));
    assert_eq!(mappings.host_uid(65536), None);
}

#[test]
fn r35_mappings_that_cannot_be_are_refused_by_name() {
    let good = [range(0, 65536, 65536)];
    let many: Vec<_> = (0..341).map(|at| range(at, 1000 + at, 1)).collect();
    for (list, reason) in [
        (vec![], "no mapping"),
        (vec![range(0, 1000, 0)], "[0]: length 0"),
        (vec![range(0, 0, 65536)], "[0]: host_id 0 is the host's root"),
        (vec![range(0, 0, u32::MAX)], "[0]: host_id 0 is the host's root"),
        (vec![range(0, 1000, 10), range(5, 2000, 10)], "[0] and [1] overlap"),
        (vec![range(0, 1000, 10), range(10, 1005, 10)], "[0] and [1] overlap"),
        (vec![range(0, 1000, 10), range(10, 2000, 10)], "2 mappings; only one is supported"),
        (vec![range(1, 1000, 10)], "container_id 0 is not mapped"),
        (vec![range(0, u32::MAX, 1)], "[0]: goes beyond the last id"),
        (vec![range(0, 1000, u32::MAX)], "[0]: goes beyond the last id"),
        (many, "341 mappings are more than the 340 that the kernel takes"),
    ] {
        let (uids, gids) =
            (options(cri::NamespaceMode::Pod, &list, &good), options(cri::NamespaceMode::Pod, &good, &list));
        assert_eq!(refused(&uids), format!("{FIELD}.uids: {reason}"));
        assert_eq!(refused(&gids), format!("{FIELD}.gids: {reason}"));
    }
    assert_eq!(
        refused(&options(cri::NamespaceMode::Node, &good, &[])),
        format!("{FIELD}: mode NODE takes no id mappings")
    );
    for mode in [cri::NamespaceMode::Container, cri::NamespaceMode::Target] {
        assert!(refused(&options(mode, &good, &good)).ends_with("is not possible"));
    }
    let mut unknown = pod(&good);
    unknown.userns_options.as_mut().unwrap().mode = 9;
    assert_eq!(refused(&unknown), format!("{FIELD}: mode 9 is unknown"));
}

#[test]
fn the_hosts_pids_and_ipc_do_not_go_with_it() {
    let good = pod(&[range(0, 65536, 65536)]);
    let node = i32::from(cri::NamespaceMode::Node);
    let pid = refused(&cri::NamespaceOption { pid: node, ..good.clone() });
    assert!(pid.contains("namespace_options.pid"), "{pid}");
    let ipc = refused(&cri::NamespaceOption { ipc: node, ..good.clone() });
    assert!(ipc.contains("namespace_options.ipc"), "{ipc}");
    assert!(wanted(Some(&cri::NamespaceOption { network: node, ..good })).is_ok());
}

#[test]
fn r35_a_container_has_its_sandboxs_mapping() {
    let (one, other) = (pod(&[range(0, 65536, 65536)]), pod(&[range(0, 131_072, 65536)]));
    let none = cri::NamespaceOption::default();
    assert!(same(&one, &one).is_ok() && same(&none, &none).is_ok());
    for (own, pods) in [(&one, &other), (&none, &one), (&one, &none)] {
        let error = same(own, pods).unwrap_err();
        assert!(error.class == Class::Invalid && error.text.starts_with(FIELD), "{error}");
    }
}

#[test]
fn a_mount_has_both_mappings_or_none() {
    let (some, none) = (vec![range(0, 65536, 65536)], vec![]);
    let mount = |uids: &Vec<_>, gids: &Vec<_>| cri::Mount {
        uid_mappings: uids.clone(),
        gid_mappings: gids.clone(),
        ..Default::default()
    };
    assert_eq!(of_mount(&mount(&none, &none)).unwrap(), None);
    assert!(of_mount(&mount(&some, &some)).unwrap().is_some());
    assert_eq!(of_mount(&mount(&some, &none)).unwrap_err().text, "gidMappings: no mapping");
    assert_eq!(of_mount(&mount(&none, &some)).unwrap_err().text, "uidMappings: no mapping");
}

#[test]
fn groups_that_may_ping_are_the_pods() {
    let mappings = wanted(Some(&pod(&[range(0, 65536, 1000)]))).unwrap().unwrap();
    let all = all_ping_groups(&mappings).unwrap();
    assert_eq!((all.0.as_str(), all.1.as_str()), (PING_GROUPS, "65536 66535"));
    let value = |value| sysctl(&mappings, "net/ipv4/ping_group_range", value);
    assert_eq!(value("5 10").unwrap(), "65541 65546");
    assert_eq!(value("1 0").unwrap(), "1 0");
    for bad in ["0 1000", "0", "a b", "0 2147483647"] {
        assert!(value(bad).unwrap_err().text.contains("ping_group_range"), "{bad}");
    }
    assert_eq!(sysctl(&mappings, "net.core.somaxconn", "5 10").unwrap(), "5 10");
}
