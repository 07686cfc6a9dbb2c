//! What stands in a manifest for something else: `$(VARIABLE)` in commands and values, and fields of the pod itself in
//! variables. As kubelet has it.

use super::model::Pod;

/// What is known about a pod when its containers are made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) uid: String,
    pub(crate) node_name: String,
    /// Addresses, the first one first.
    pub(crate) pod_ips: Vec<String>,
}

/// Replaces `$(NAME)` by the value `lookup` gives. `$$` is a `$`; what is not known stays as it stands.
pub(crate) fn variables(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            result.push_str(&lookup(name).unwrap_or_else(|| format!("$({name})")));
            rest = after;
        } else {
            result.push('$');
        }
    }
    result + rest
}

/// Fields that a variable may have as its value.
const FIELDS: [&str; 6] =
    ["metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "status.podIP", "status.podIPs"];

/// Fields of Kubernetes that nobody knows here.
const UNKNOWABLE: [&str; 3] = ["spec.serviceAccountName", "status.hostIP", "status.hostIPs"];

/// Whether a field can be a variable's value.
pub(super) fn check_field(path: &str) -> Result<(), String> {
    if FIELDS.contains(&path) || subscript(path).is_some() {
        return Ok(());
    }
    if UNKNOWABLE.contains(&path) {
        return Err(format!("{path}: not supported"));
    }
    Err(match crisp_shim::config::nearest(path, FIELDS) {
        Some(name) => format!("{path:?} is no field for a variable; did you mean {name}?"),
        None => format!(
            "{path:?} is no field for a variable; there are {}, metadata.labels['KEY'] and metadata.annotations['KEY']",
            FIELDS.join(", ")
        ),
    })
}

/// `metadata.labels['a']` -> (labels, a).
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (kind, rest) = path.strip_prefix("metadata.")?.split_once("['")?;
    matches!(kind, "labels" | "annotations").then_some((kind, rest.strip_suffix("']")?))
}

/// The value of a field that [`check_field`] lets pass. A label that is not there is empty, as for kubelet.
pub(crate) fn field(path: &str, pod: &Pod, facts: &Facts) -> String {
    match path {
        "metadata.name" => pod.metadata.name.clone(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => facts.uid.clone(),
        "spec.nodeName" => facts.node_name.clone(),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        other => match subscript(other) {
            Some(("labels", key)) => pod.metadata.labels.get(key).cloned().unwrap_or_default(),
            Some((_, key)) => pod.metadata.annotations.get(key).cloned().unwrap_or_default(),
            None => String::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_replaced_and_dollars_escaped() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(B)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("cost: 5$", "cost: 5$"),
            ("$(date +%s)", "$(date +%s)"),
        ] {
            assert_eq!(variables(text, lookup), expected, "{text}");
        }
    }

    #[test]
    fn fields_are_known_or_refused_by_name() {
        for path in FIELDS.iter().chain(&["metadata.labels['app.io/x']"]) {
            assert_eq!(check_field(path), Ok(()), "{path}");
        }
        assert!(check_field("status.hostIP").unwrap_err().contains("not supported"));
        assert!(check_field("metadata.nam").unwrap_err().contains("did you mean metadata.name?"));
        assert!(check_field("spec.containers").is_err() && check_field("metadata.labels").is_err());
    }

    #[test]
    fn fields_have_the_pods_values() {
        let mut pod = Pod::default();
        pod.metadata.name = "web".into();
        pod.metadata.labels.insert("a".into(), "b".into());
        let facts =
            Facts { uid: "u".into(), node_name: "n".into(), pod_ips: vec!["1.2.3.4".into(), "::1".into()] };
        let value = |path| field(path, &pod, &facts);
        assert_eq!(
            [value("metadata.name"), value("metadata.namespace"), value("metadata.uid")],
            ["web", "default", "u"]
        );
        assert_eq!(
            [value("status.podIP"), value("status.podIPs"), value("spec.nodeName")],
            ["1.2.3.4", "1.2.3.4,::1", "n"]
        );
        assert_eq!([value("metadata.labels['a']"), value("metadata.annotations['a']")], ["b", ""]);
    }
}
