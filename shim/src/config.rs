//! The daemon's configuration: one table of keys (name, type, default, description) from which come the structs, the
//! defaults, the reader with its error messages, and the commented file of `crisp config default`.
//!
//! Must not know what the values are used for: it checks that they can be meant, not that this host fits them.

mod check;
mod keys;
mod nearest;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use toml::de::DeTable;

use keys::{Place, keys};
pub use nearest::nearest;

/// Where the configuration is when nothing else is said. It need not exist.
pub const DEFAULT_PATH: &str = "/etc/crisp/config.toml";

keys! {
    /// Everything that can be set.
    pub struct Config {
        /// Where to listen: unix:// and an absolute path.
        listen: String = "unix:///run/crisp/crisp.sock".into(),
        /// Directory for what must outlive a reboot: images and layers. On a file system that can hold an overlay's
        /// upper directory.
        root: String = "/var/lib/crisp".into(),
        /// Directory for what ends with the kernel: records of pods, pins, sockets. On a tmpfs.
        state: String = "/run/crisp".into(),
        /// What to log, as a tracing filter: error, warn, info, debug, trace, or target=level pairs.
        log: String = "info".into(),
        /// Path of crisp-monitor. Empty: beside the crisp binary, else /usr/libexec/crisp/crisp-monitor.
        monitor: String = String::new(),
        sections {
            /// Control groups; version 2 only.
            cgroup: CgroupConfig,
            /// The network: the embedded one, or CNI's.
            network: NetworkConfig,
            /// Images and registries.
            image: ImageConfig,
            /// Containers.
            container: ContainerConfig,
            /// The streaming server: exec, attach, port-forward.
            stream: StreamConfig,
        }
    }
}

keys! {
    /// Section `[cgroup]`.
    pub struct CgroupConfig {
        /// Where cgroup v2 is mounted.
        root: String = "/sys/fs/cgroup".into(),
        /// Who makes cgroups: cgroupfs, or systemd, which makes a scope for each container. kubelet's cgroupDriver must
        /// be the same.
        driver: String = "cgroupfs".into(),
        /// Parent of pods that come without a cgroup_parent. With systemd a slice: /crisp stands for crisp.slice.
        default_parent: String = "/crisp".into(),
        /// Refuse to start without the controllers cpu, cpuset, memory and pids, and without device control (BPF).
        /// When false, pods without limits run on such a host, a limit that cannot hold is an error, and where devices
        /// cannot be controlled, every container that can make a device node can use the device.
        require_controllers: bool = true,
    }
}

keys! {
    /// Section `[network]`.
    pub struct NetworkConfig {
        /// Which network pods get: bridge, the embedded one; cni, that of a network list in cni_conf_dir; auto, the
        /// latter where there is a valid list when the pod is made, else the former.
        mode: String = "auto".into(),
        /// Name of the bridge; at most 15 bytes.
        bridge: String = "crisp0".into(),
        /// Range of pods' IPv4 addresses. Empty: no IPv4.
        ipv4: String = "10.89.0.0/16".into(),
        /// Range of pods' IPv6 addresses. Empty: no IPv6.
        ipv6: String = "fd89:c815:9::/64".into(),
        /// MTU of pod interfaces, bytes. 0: that of the interface with the default route.
        mtu: u32 = 0,
        /// Give connections that leave the ranges the host's address.
        masquerade: bool = true,
        /// Let any user of a pod listen on its ports below 1024, as containerd's enable_unprivileged_ports: the sysctl
        /// net.ipv4.ip_unprivileged_port_start=0, where the pod does not ask for another value.
        unprivileged_ports: bool = true,
        /// Let any user of a pod send pings, as containerd's enable_unprivileged_icmp: the sysctl
        /// net.ipv4.ping_group_range="0 2147483647", where the pod does not ask for another value.
        unprivileged_ping: bool = true,
        /// Ranges outside of the pods' own to which connections keep the pod's address, because there is a route back:
        /// the whole cluster's pods, for example. No two may overlap.
        native_ranges: Vec<String> = Vec::new(),
        /// Directory in which network namespaces are pinned, where CNI agents and `ip netns` look.
        pin_dir: String = "/run/netns".into(),
        /// Directory of CNI network lists. It need not exist.
        cni_conf_dir: String = "/etc/cni/net.d".into(),
        /// Directories in which CNI plugins are looked for, in this order.
        cni_bin_dirs: Vec<String> = ["/opt/cni/bin", "/usr/lib/cni"].map(Into::into).into(),
        /// How long one call of a CNI plugin may take, seconds, before the plugin and all that it has started is killed.
        cni_timeout_seconds: u64 = 120,
        /// Network namespaces that are kept ready, with an address each, for the next pods; made anew when half of them
        /// are taken. 0: none; every pod's is made when it is asked for.
        pool: usize = 4,
    }
}

keys! {
    /// Section `[image]`.
    pub struct ImageConfig {
        /// Directory of registry settings in containerd's layout: one folder a registry with a hosts.toml.
        hosts_dir: String = "/etc/crisp/certs.d".into(),
        /// File of credentials for pulls that bring none, in the form of docker's config.json or containers'
        /// auth.json, credential helpers included. It need not exist. Empty: none.
        auth_file: String = "/etc/crisp/auth.json".into(),
        /// Which images may be used: a file in the form of containers-policy.json. It need not exist. Empty: none.
        policy: String = "/etc/crisp/policy.json".into(),
        /// References of images that must never be collected as garbage.
        pinned: Vec<String> = Vec::new(),
        /// Layers of one pull that are fetched at the same time.
        max_parallel_downloads: usize = 3,
        /// A pull that receives nothing for so many seconds is given up.
        progress_timeout_seconds: u64 = 300,
    }
}

keys! {
    /// Section `[container]`.
    pub struct ContainerConfig {
        /// Longest piece of a log line, bytes. Longer lines are written in pieces tagged P.
        log_line_bytes: u32 = 16384,
        /// Capabilities of a container before its own additions and removals, without CAP_.
        capabilities: Vec<String> = [
            "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
            "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
        ].map(Into::into).into(),
        /// Let containers mount crisp's socket, state directory or root directory, or something in the latter two. Who
        /// can use them is root on the node. A directory that they lie in can be mounted anyway.
        mount_own_files: bool = false,
        /// Directories of CDI spec files; a later one wins. Empty: containers cannot name CDI devices.
        cdi_spec_dirs: Vec<String> = ["/etc/cdi", "/var/run/cdi"].map(Into::into).into(),
    }
}

keys! {
    /// Section `[stream]`.
    pub struct StreamConfig {
        /// IP address to listen on. kubelet connects to it, so the node's loopback is right. Another one needs TLS: what
        /// is typed and shown in containers goes over it.
        address: String = "127.0.0.1".into(),
        /// TCP port. 0: one that is free.
        port: u16 = 0,
        /// File with the certificate chain (PEM). Empty: no TLS.
        tls_certificate: String = String::new(),
        /// File with the certificate's key (PEM).
        tls_key: String = String::new(),
        /// A session over which nothing goes for so many seconds is ended, and what was exec'd in it. 0: never.
        idle_timeout_seconds: u64 = 14400,
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file can be read, but not used.
    #[error("configuration {}: {}", path.display(), problems.join("\n  "))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All that is wrong with it; each names the key and, where it is known, the line.
        problems: Vec<String>,
    },
    /// Values cannot work that did not come from a file.
    #[error("configuration: {}", problems.join("\n  "))]
    Values {
        /// All that is wrong; each names the key.
        problems: Vec<String>,
    },
}

impl Config {
    /// Reads the file at `path`. `None` means [`DEFAULT_PATH`], which may be missing: then all is at its default.
    ///
    /// # Errors
    /// The file is missing (when named) or cannot be read, is not TOML, or holds an unknown key, a value of the wrong
    /// type, or one that cannot work. All problems are reported together.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        match fs::read_to_string(file) {
            Ok(text) => Self::parse(&text)
                .map_err(|problems| ConfigError::Invalid { path: file.to_path_buf(), problems }),
            Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path: file.to_path_buf(), source }),
        }
    }

    /// Reads a configuration from text.
    ///
    /// # Errors
    /// Everything that is wrong, one entry each.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            return Err(errors.iter().map(|error| keys::syntax_problem(text, error)).collect());
        }
        let mut config = Self::default();
        let mut problems = Vec::new();
        config.take(table.into_inner(), &Place::top(text), &mut problems);
        config.check(&mut problems);
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    /// Checks values that were set by other means than a file.
    ///
    /// # Errors
    /// Everything that cannot work, with the keys' names.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        self.check(&mut problems);
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::Values { problems }) }
    }

    /// The configuration file that says what is so anyway, with every key described.
    #[must_use]
    pub fn default_text() -> String {
        let mut text = String::from(
            "# Configuration of crisp serve. Every key is here with its default value.\n\
             # Read from /etc/crisp/config.toml, or from where --config says.\n",
        );
        Self::default().describe("", &mut text);
        text
    }
}

#[cfg(test)]
mod tests;
