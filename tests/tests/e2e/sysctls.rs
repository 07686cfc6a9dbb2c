//! Sysctls that a pod asks for and that are not its own. `c04_` and `c05_` of the adversarial cases.

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::node::Node;
use crisp_tests::untouched;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "c04_a_sysctl_is_one_setting_of_the_pod", needs: &[], images: &["busybox"], run: smuggled },
    Case { name: "c05_no_sysctl_reaches_the_host", needs: &[], images: &["busybox"], run: host },
];

fn config(node: &Node, name: &str, value: &str) -> Result<cri::PodSandboxConfig> {
    let mut config = node.pod_config("sysctl");
    let linux = config.linux.as_mut().context("linux")?;
    linux.sysctls = [(name.to_owned(), value.to_owned())].into();
    Ok(config)
}

/// Shows that a sandbox is refused, by name of the setting, and leaves nothing.
fn refused(node: &Node, config: &cri::PodSandboxConfig) -> Result<()> {
    let asked = config.linux.as_ref().map(|linux| format!("{:?}", linux.sysctls)).unwrap_or_default();
    let before = node.snapshot()?;
    let error = node.cri().run_pod(config).err().with_context(|| format!("{asked}: a sandbox was made"))?;
    ensure!(error.message().contains("sysctl"), "{asked}: {error:?}");
    ensure!(!node.cri().pods()?.iter().any(|pod| pod.metadata == config.metadata), "{asked}: it is listed");
    node.wait_for_return(&before)
}

/// Name and value, each with something that is more, or other, than one setting of the pod.
const SMUGGLED: [(&str, &str); 20] = [
    ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/evil"),
    ("kernel.shm_rmid_forced", "1\nkernel.core_pattern=|/evil"),
    ("kernel.shm_rmid_forced", "1\rkernel.core_pattern=|/evil"),
    ("kernel.shm_rmid_forced", "1\0"),
    ("kernel.shm_rmid_forced", "=1"),
    ("kernel.shm_rmid_forced", "1 kernel.core_pattern=|/evil"),
    ("kernel.shm_rmid_forced", ""),
    ("kernel.shm_rmid_forced/../core_pattern", "|/evil"),
    ("kernel/shm_rmid_forced/../core_pattern", "|/evil"),
    ("kernel.core_pattern", "|/evil"),
    ("kernel/core_pattern", "|/evil"),
    ("kernel.shm_rmid_forced=1\nkernel.core_pattern", "|/evil"),
    ("kernel.modprobe", "/evil"),
    ("vm.overcommit_memory", "1"),
    ("fs.mqueue/../../kernel.core_pattern", "|/evil"),
    ("net.ipv4.conf.eth0/../..", "1"),
    ("net/../kernel/core_pattern", "|/evil"),
    ("net..ipv4.ip_forward", "1"),
    ("../kernel/core_pattern", "|/evil"),
    ("net.ipv4.no_such_setting", "1"),
];

fn smuggled(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        for (name, value) in SMUGGLED {
            refused(node, &config(node, name, value)?)?;
        }
        // Both spellings of a name are the pod's own setting.
        for (name, path) in
            [("net.ipv4.ip_forward", "net/ipv4/ip_forward"), ("net/ipv4/ip_forward", "net/ipv4/ip_forward")]
        {
            let pod = node.run_pod_as(config(node, name, "0")?)?;
            let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
            ensure!(node.cri().shell(&id, &format!("cat /proc/sys/{path}"))? == "0\n", "{name}");
            node.end_pod(&pod)?;
        }
        Ok(())
    })
}

fn host(node: &mut Node) -> Result<()> {
    use cri::NamespaceMode::Node as Host;
    untouched::around(node, |node, _| {
        let network = cri::NamespaceOption { network: Host.into(), ..Default::default() };
        let ipc = cri::NamespaceOption { ipc: Host.into(), ..Default::default() };
        for (options, name, value) in [
            (&network, "net.ipv4.ip_forward", "0"),
            (&network, "net.ipv4.ping_group_range", "0 0"),
            (&network, "net/ipv4/conf/all/forwarding", "0"),
            (&network, "kernel.domainname", "evil"),
            (&ipc, "kernel.shm_rmid_forced", "1"),
            (&ipc, "kernel.msgmax", "1"),
            (&ipc, "kernel.sem", "1 1 1 1"),
            (&ipc, "fs.mqueue.msg_max", "1"),
        ] {
            let mut config = config(node, name, value)?;
            let linux = config.linux.as_mut().context("linux")?;
            linux.security_context.as_mut().context("security context")?.namespace_options =
                Some(options.clone());
            refused(node, &config)?;
        }
        Ok(())
    })
}
