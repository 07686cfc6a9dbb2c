//! The reasons for which crisp and containerd may differ, and the differences that each of them explains.
//!
//! Must not know: how the differences are found.

use super::explained::{Reason, Seen};

/// A difference in every scenario.
const fn everywhere(name: &'static str, crisp: &'static str, containerd: &'static str) -> Seen {
    in_some("*", name, crisp, containerd)
}

/// A difference in the scenarios that are named, separated by blanks.
const fn in_some(
    scenarios: &'static str,
    name: &'static str,
    crisp: &'static str,
    containerd: &'static str,
) -> Seen {
    Seen { scenarios, name, crisp, containerd }
}

const SECCOMP: &str = "seccomp_default* restricted";

/// All of them. Where several fit, the first is the one that is named.
pub(super) const REASONS: &[Reason] = &[
    Reason {
        why: "A pod need not know the host's names; kubelet mounts a file of its own there.",
        seen: &[everywhere("* content /etc/hosts", "127.0.0.1\\011localhost\\012::1*", "*")],
    },
    Reason {
        why: "No DNS configuration means the host's file, an empty one an empty file; kubelet sends the host's where a \
              pod is to have it.",
        seen: &[everywhere("* content /etc/resolv.conf", "", "nameserver *")],
    },
    Reason {
        why: "They lie in the state directory, a tmpfs, which dies with the pods.",
        seen: &[
            everywhere(
                "* mount /etc/host*",
                "tmpfs r*,relatime, part, device rw",
                "ext4 r*,relatime, part, device rw",
            ),
            everywhere(
                "* mount /etc/resolv.conf",
                "tmpfs r*,relatime, part, device rw",
                "ext4 r*,relatime, part, device rw",
            ),
        ],
    },
    Reason {
        why: "The root is a mount that was never the host's, so there is nothing for it to follow.",
        seen: &[
            everywhere(
                "* mount /",
                "overlay r*,relatime, overlay rw",
                "overlay r*,relatime, master, overlay rw",
            ),
            in_some(
                "masked_otherwise",
                "* mount /*",
                "overlay ro,relatime, part, overlay rw",
                "overlay ro,relatime, part, master, overlay rw",
            ),
        ],
    },
    Reason {
        why: "The OCI's `rootfsPropagation` says so, and runc 1.1 leaves the root private.",
        seen: &[in_some(
            "privileged_mounts",
            "* mount /",
            "overlay rw,relatime, shared, overlay rw",
            "overlay rw,relatime, overlay rw",
        )],
    },
    Reason {
        why: "What hides a path is out of the container's reach; the container's own `/dev/null` can be replaced.",
        seen: &[
            everywhere(
                "* mount /*",
                "tmpfs ro,nosuid,noexec,relatime, part, device rw",
                "tmpfs rw,nosuid, part, device rw",
            ),
            everywhere(
                "* mount /*",
                "tmpfs ro,nosuid,noexec,relatime, part, device rw",
                "tmpfs ro,relatime, tmpfs ro*",
            ),
            everywhere("* hidden /*", "d0555 0:0", "d1777 0:0"),
            in_some(
                "masked_otherwise",
                "* size /sys/fs/cgroup",
                "type 0x1021994, 4 KiB, * files, flags 0x102b",
                "type 0x1021994, * KiB, * files, flags 0x1021",
            ),
        ],
    },
    Reason {
        why: "The mount is read-only and not the file system, which a privileged container of the same pod can then \
              write to; containerd's pause container makes it read-only for all.",
        seen: &[
            everywhere(
                "* mount /sys",
                "sysfs r*,nosuid,nodev,noexec,relatime, sysfs rw",
                "sysfs r*, sysfs ro",
            ),
            everywhere("* writable /sys/*", "EACCES", "EROFS"),
            in_some("privileged*", "* writable /sys*", "yes", "EROFS"),
            in_some("privileged*", "* writable /sys", "EACCES", "EROFS"),
            in_some("privileged*", "* size /sys", "*, flags 0x102e", "*, flags 0x102f"),
        ],
    },
    Reason {
        why: "A keyring without a name cannot be joined by guessing it, and what is exec'd does not see the keys of \
              the container's own process.",
        seen: &[
            everywhere(
                "* process session keyring",
                "keyring;*;3f030000;_ses",
                "keyring;*;3f1b0000;_ses.<container>",
            ),
            everywhere("exec keyring session", "its own", "of the first process"),
        ],
    },
    Reason {
        why: "A container's processes begin with priority 0 and every signal at its default, whatever the daemon has.",
        seen: &[
            everywhere("* process nice", "0", "*"),
            everywhere("* status SigIgn", "0000000000000000", "*"),
        ],
    },
    Reason {
        why: "Limits are those that the daemon was started with; Go raises the soft one of open files for itself, and \
              containerd's containers inherit that.",
        seen: &[everywhere("* limit Max open files", "1024 4096", "4096 4096")],
    },
    Reason {
        why: "A link to a file that is masked is of no use.",
        seen: &[everywhere("* tree /dev/core", "-", "l0777 0:0 -> /proc/kcore")],
    },
    Reason {
        why: "A container's cgroup has the controllers that CRI has limits for.",
        seen: &[
            everywhere(
                "* cgroup /sys/fs/cgroup/cgroup.controllers",
                "cpuset cpu io memory hugetlb pids",
                "* rdma misc",
            ),
            everywhere("* cgroup /sys/fs/cgroup/misc.max", "ENOENT", ""),
            everywhere("* cgroup /sys/fs/cgroup/rdma.max", "ENOENT", ""),
        ],
    },
    Reason {
        why: "Shares become a weight by the newer formula, which runc 1.1 does not have.",
        seen: &[in_some("limits", "* cgroup /sys/fs/cgroup/cpu.weight", "59", "20")],
    },
    Reason {
        why: "A memory limit without one for swap means no swap, so that it is a limit.",
        seen: &[in_some("limits", "* cgroup /sys/fs/cgroup/memory.swap.max", "0", "max")],
    },
    Reason {
        why: "A limit of huge pages holds for what is reserved, too; runc 1.1 sets it for their use only.",
        seen: &[in_some("more_limits", "* cgroup /sys/fs/cgroup/hugetlb.2MB.rsvd.max", "4194304", "max")],
    },
    Reason {
        why: "The AppArmor profile is crisp's own; it hides more of `/sys`, and lets `kernel.shm*` be written where \
              nothing makes it read-only.",
        seen: &[
            everywhere(
                "* content /proc/self/attr/current",
                "crisp-default (enforce)",
                "cri-containerd.apparmor.d (enforce)",
            ),
            everywhere("* hidden /sys/kernel/security content", "EACCES", "none"),
            everywhere("* hidden /sys/firmware content", "EACCES", "none"),
            in_some("bare masked_otherwise", "* hidden /sys/firmware content", "EACCES", "entries"),
            in_some("bare masked_otherwise", "* writable /proc/sys/kernel/shmmax", "yes", "EACCES"),
        ],
    },
    Reason {
        why: "A cgroup of its own finds every process of an exec that has run out of time.",
        seen: &[everywhere("exec cgroup /proc/self/cgroup", "0::*/exec-*", "0::*")],
    },
    Reason {
        why: "The hardware address follows from the IP address, so nobody has to hear of a new pod.",
        seen: &[everywhere("* sysctl /proc/sys/net/ipv4/conf/eth0/arp_notify", "0", "1")],
    },
    Reason {
        why: "Addresses and routes come from the runtime, never from whoever advertises them in the pod's network.",
        seen: &[everywhere("* sysctl /proc/sys/net/ipv6/conf/eth0/accept_ra", "0", "1")],
    },
    Reason {
        why: "A device can be used where it was asked for (`devices`, CDI), this one too; runc 1.1 lets everybody use \
              it, and so do newer versions but 1.2.0 to 1.2.3.",
        seen: &[everywhere(
            "* mknod char 10:200",
            "made, read EPERM, write EPERM",
            "made, read yes, write yes",
        )],
    },
    Reason {
        why: "A capability may be written with its prefix; containerd 1.6 passes over such a name in silence.",
        seen: &[in_some("capabilities_added", "* status Cap*", "00000000a80c35fb", "00000000a80435fb")],
    },
    Reason {
        why: "The user of an image has the groups that the image gives to it; containerd takes root's unless the \
              request names the user.",
        seen: &[
            in_some("image_* command_over_image", "* id groups", "29 1234 4321", "1234 4322"),
            in_some("image_* command_over_image", "* status Groups", "29 1234 4321 ", "1234 4322 "),
        ],
    },
    Reason {
        why: "The home directory is looked up in the image, before anything hides the file that it is in.",
        seen: &[in_some("masked_otherwise", "* env HOME", "/root", "/")],
    },
    Reason {
        why: "The pod's first process is crisp's own init, which nobody can look into.",
        seen: &[
            in_some("shared_pids*", "* visible crisp-init of 65534", "visible", "-"),
            in_some("shared_pids*", "* visible pause of 0", "-", "visible"),
            in_some("shared_pids*", "* hidden /proc/1/environ content", "EACCES", "bytes"),
            in_some("shared_pids*", "* hidden /proc/1/root", "l0777 0:0 -> ", "l0777 0:0 -> /"),
            in_some("shared_pids*", "* hidden /proc/1/root content", "EACCES", "EISDIR"),
        ],
    },
    Reason {
        why: "The default seccomp profile is containerd's of today; since 1.6 it has closed io_uring, AF_VSOCK and \
              AF_ALG and opened process_vm_readv and name_to_handle_at.",
        seen: &[
            in_some(SECCOMP, "* call io_uring_*", "EPERM", "E*"),
            in_some(SECCOMP, "* socket alg", "EPERM", "*"),
            in_some(SECCOMP, "* socket vsock", "EPERM", "*"),
            in_some("seccomp_default restricted", "* call process_vm_*", "EINVAL", "EPERM"),
            in_some("seccomp_default restricted", "* call name_to_handle_at", "EINVAL", "EPERM"),
        ],
    },
    Reason {
        why: "System calls that are younger than containerd 1.6 are decided about as containerd does today; runc 1.1 \
              does not know them.",
        seen: &[
            in_some(SECCOMP, "* call set_mempolicy_home_node", "EPERM", "ENOSYS"),
            in_some(SECCOMP, "* call cachestat", "EBADF", "ENOSYS"),
            in_some(SECCOMP, "* call fchmodat2", "EINVAL", "ENOSYS"),
            in_some(SECCOMP, "* call futex_wake", "EINVAL", "ENOSYS"),
            in_some(SECCOMP, "* call listmount", "EINVAL", "ENOSYS"),
            in_some(SECCOMP, "* call statmount", "EINVAL", "ENOSYS"),
            in_some(SECCOMP, "* call lsm_get_self_attr", "EFAULT", "ENOSYS"),
            in_some(SECCOMP, "* call map_shadow_stack", "EOPNOTSUPP", "ENOSYS"),
            in_some(SECCOMP, "* call mseal", "EINVAL", "ENOSYS"),
        ],
    },
];
