//! The fields of a Pod that are supported, and the names of those that are not (Kubernetes 1.36, core/v1).

use std::collections::BTreeMap;

use super::{quantity::Quantity, read::object};

object! {
    /// A pod.
    pub(crate) struct Pod {
        api_version = "apiVersion": String,
        kind = "kind": String,
        metadata = "metadata" required: Metadata,
        spec = "spec" required: Spec,
    }
    unsupported ["status"]
}

object! {
    /// What names a pod.
    pub(crate) struct Metadata {
        name = "name" required: String,
        namespace = "namespace": Option<String>,
        labels = "labels": BTreeMap<String, String>,
        annotations = "annotations": BTreeMap<String, String>,
    }
    unsupported [
        "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers", "generateName",
        "generation", "managedFields", "ownerReferences", "resourceVersion", "selfLink", "uid",
    ]
}

object! {
    /// What a pod is made of.
    pub(crate) struct Spec {
        containers = "containers" required: Vec<Container>,
        init_containers = "initContainers": Vec<Container>,
        volumes = "volumes": Vec<Volume>,
        restart_policy = "restartPolicy": Option<String>,
        termination_grace_period_seconds = "terminationGracePeriodSeconds": Option<i64>,
        hostname = "hostname": Option<String>,
        subdomain = "subdomain": Option<String>,
        host_aliases = "hostAliases": Vec<HostAlias>,
        share_process_namespace = "shareProcessNamespace": bool,
        host_network = "hostNetwork": bool,
        host_pid = "hostPID": bool,
        host_ipc = "hostIPC": bool,
        security_context = "securityContext": PodSecurityContext,
        dns_policy = "dnsPolicy": Option<String>,
        dns_config = "dnsConfig": Option<DnsConfig>,
    }
    unsupported [
        "activeDeadlineSeconds", "affinity", "automountServiceAccountToken", "enableServiceLinks",
        "ephemeralContainers", "hostUsers", "hostnameOverride", "imagePullSecrets", "nodeName", "nodeSelector", "os",
        "overhead", "preemptionPolicy", "priority", "priorityClassName", "readinessGates", "resourceClaims",
        "resources", "runtimeClassName", "schedulerName", "schedulingGates", "serviceAccount", "serviceAccountName",
        "setHostnameAsFQDN", "tolerations", "topologySpreadConstraints", "workloadRef",
    ]
}

object! {
    /// Lines of /etc/hosts.
    pub(crate) struct HostAlias {
        ip = "ip" required: String,
        hostnames = "hostnames": Vec<String>,
    }
    unsupported []
}

object! {
    /// Resolver settings of a pod.
    pub(crate) struct DnsConfig {
        nameservers = "nameservers": Vec<String>,
        searches = "searches": Vec<String>,
        options = "options": Vec<DnsOption>,
    }
    unsupported []
}

object! {
    /// A resolver option.
    pub(crate) struct DnsOption {
        name = "name" required: String,
        value = "value": Option<String>,
    }
    unsupported []
}

object! {
    /// Security settings of a pod, which hold for containers that do not say otherwise.
    pub(crate) struct PodSecurityContext {
        run_as_user = "runAsUser": Option<i64>,
        run_as_group = "runAsGroup": Option<i64>,
        run_as_non_root = "runAsNonRoot": Option<bool>,
        supplemental_groups = "supplementalGroups": Vec<i64>,
        fs_group = "fsGroup": Option<i64>,
        seccomp_profile = "seccompProfile": Option<SeccompProfile>,
        sysctls = "sysctls": Vec<Sysctl>,
    }
    unsupported [
        "appArmorProfile", "fsGroupChangePolicy", "seLinuxChangePolicy", "seLinuxOptions",
        "supplementalGroupsPolicy", "windowsOptions",
    ]
}

object! {
    /// A kernel parameter.
    pub(crate) struct Sysctl {
        name = "name" required: String,
        value = "value": String,
    }
    unsupported []
}

object! {
    /// A seccomp profile.
    pub(crate) struct SeccompProfile {
        kind = "type" required: String,
    }
    unsupported ["localhostProfile"]
}

object! {
    /// A container or an init container.
    pub(crate) struct Container {
        name = "name" required: String,
        image = "image" required: String,
        image_pull_policy = "imagePullPolicy": Option<String>,
        command = "command": Vec<String>,
        args = "args": Vec<String>,
        working_dir = "workingDir": Option<String>,
        env = "env": Vec<EnvVar>,
        ports = "ports": Vec<Port>,
        resources = "resources": Resources,
        volume_mounts = "volumeMounts": Vec<VolumeMount>,
        security_context = "securityContext": SecurityContext,
        stdin = "stdin": bool,
        stdin_once = "stdinOnce": bool,
        tty = "tty": bool,
        termination_message_path = "terminationMessagePath": Option<String>,
        termination_message_policy = "terminationMessagePolicy": Option<String>,
    }
    unsupported [
        "envFrom", "lifecycle", "livenessProbe", "readinessProbe", "resizePolicy", "restartPolicy",
        "restartPolicyRules", "startupProbe", "volumeDevices",
    ]
}

object! {
    /// An environment variable.
    pub(crate) struct EnvVar {
        name = "name" required: String,
        value = "value": Option<String>,
        value_from = "valueFrom": Option<EnvSource>,
    }
    unsupported []
}

object! {
    /// Where a variable's value comes from.
    pub(crate) struct EnvSource {
        field_ref = "fieldRef" required: FieldRef,
    }
    unsupported ["configMapKeyRef", "fileKeyRef", "resourceFieldRef", "secretKeyRef"]
}

object! {
    /// A field of the pod itself.
    pub(crate) struct FieldRef {
        api_version = "apiVersion": Option<String>,
        field_path = "fieldPath" required: String,
    }
    unsupported []
}

object! {
    /// A port that a container listens on.
    pub(crate) struct Port {
        name = "name": Option<String>,
        container_port = "containerPort" required: i64,
        host_port = "hostPort": Option<i64>,
        host_ip = "hostIP": Option<String>,
        protocol = "protocol": Option<String>,
    }
    unsupported []
}

object! {
    /// What a container asks for and may use at most.
    pub(crate) struct Resources {
        requests = "requests": Amounts,
        limits = "limits": Amounts,
    }
    unsupported ["claims"]
}

object! {
    /// CPUs and memory.
    pub(crate) struct Amounts {
        cpu = "cpu": Option<Quantity>,
        memory = "memory": Option<Quantity>,
    }
    unsupported ["ephemeral-storage", "hugepages-2Mi", "hugepages-1Gi", "storage"]
}

object! {
    /// Where a volume appears in a container.
    pub(crate) struct VolumeMount {
        name = "name" required: String,
        mount_path = "mountPath" required: String,
        read_only = "readOnly": bool,
        mount_propagation = "mountPropagation": Option<String>,
    }
    unsupported ["recursiveReadOnly", "subPath", "subPathExpr"]
}

object! {
    /// Security settings of a container.
    pub(crate) struct SecurityContext {
        run_as_user = "runAsUser": Option<i64>,
        run_as_group = "runAsGroup": Option<i64>,
        run_as_non_root = "runAsNonRoot": Option<bool>,
        privileged = "privileged": bool,
        capabilities = "capabilities": Capabilities,
        read_only_root_filesystem = "readOnlyRootFilesystem": bool,
        allow_privilege_escalation = "allowPrivilegeEscalation": Option<bool>,
        proc_mount = "procMount": Option<String>,
        seccomp_profile = "seccompProfile": Option<SeccompProfile>,
    }
    unsupported ["appArmorProfile", "seLinuxOptions", "windowsOptions"]
}

object! {
    /// Changes to the default set of capabilities.
    pub(crate) struct Capabilities {
        add = "add": Vec<String>,
        drop = "drop": Vec<String>,
    }
    unsupported []
}

object! {
    /// A volume.
    pub(crate) struct Volume {
        name = "name" required: String,
        empty_dir = "emptyDir": Option<EmptyDir>,
        host_path = "hostPath": Option<HostPath>,
    }
    unsupported [
        "awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "configMap", "csi", "downwardAPI",
        "ephemeral", "fc", "flexVolume", "flocker", "gcePersistentDisk", "gitRepo", "glusterfs", "image", "iscsi",
        "nfs", "persistentVolumeClaim", "photonPersistentDisk", "portworxVolume", "projected", "quobyte", "rbd",
        "scaleIO", "secret", "storageos", "vsphereVolume",
    ]
}

object! {
    /// A volume that is empty at first and goes with the pod.
    pub(crate) struct EmptyDir {
        medium = "medium": Option<String>,
        size_limit = "sizeLimit": Option<Quantity>,
    }
    unsupported []
}

object! {
    /// A file or folder of the host.
    pub(crate) struct HostPath {
        path = "path" required: String,
        kind = "type": Option<String>,
    }
    unsupported []
}

/// When ended containers are started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl Pod {
    /// The namespace, `default` when none is given.
    pub(crate) fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or("default")
    }

    /// The restart policy, Always when none is given.
    pub(crate) fn restart_policy(&self) -> RestartPolicy {
        match self.spec.restart_policy.as_deref() {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }

    /// Grace period in seconds; 30 when none is given.
    pub(crate) fn grace_seconds(&self) -> i64 {
        self.spec.termination_grace_period_seconds.unwrap_or(30)
    }

    /// All containers, the init containers first.
    pub(crate) fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().chain(&self.spec.containers)
    }
}
