//! Whose namespace of each kind the containers of a pod are in.

use super::facts::{Container, Pod};

/// Whose a kind of namespace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// The host's: nothing keeps the pod apart.
    Host,
    /// The pod's: one for all containers.
    Pod,
    /// One for each container.
    Own,
    /// Different for different containers.
    Mixed,
}

/// Kinds of which the sandbox has one, before there is any container.
const OF_SANDBOX: [&str; 3] = ["net", "ipc", "uts"];

/// Whose namespace of a kind it is; `None` when no process tells.
pub(super) fn scope(pod: &Pod, kind: &str) -> Option<Scope> {
    let host = pod.host.get(kind)?;
    let held = pod.sandbox.as_ref().filter(|_| OF_SANDBOX.contains(&kind));
    let held = held.and_then(|sandbox| sandbox.namespaces.get(kind));
    let all: Vec<_> = pod.containers.iter().map(|container| container.namespaces.get(kind)).collect();
    let first = match all.first() {
        Some(first) => (*first)?,
        None => return held.map(|number| if number == host { Scope::Host } else { Scope::Pod }),
    };
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    Some(match distinct.len() {
        1 if first == host => Scope::Host,
        1 if all.len() > 1 || held == Some(first) => Scope::Pod,
        1 if held.is_none() && is_the_pods(&pod.containers[0], kind) => Scope::Pod,
        1 => Scope::Own,
        many if many == all.len() && !distinct.contains(&Some(host)) => Scope::Own,
        _ => Scope::Mixed,
    })
}

/// Whether a namespace of the only container is the pod's, where no other process tells.
fn is_the_pods(container: &Container, kind: &str) -> bool {
    // In a PID namespace of its own a container's first process is number 1.
    kind == "user" || OF_SANDBOX.contains(&kind) || kind == "pid" && container.identity.pid_inside != 1
}

#[cfg(test)]
mod tests {
    use super::{super::samples, *};

    /// Scope of `kind` in a pod whose containers have these numbers of it; the host's is 1.
    fn of(kind: &str, numbers: &[u64], held: Option<u64>, pid_inside: u32) -> Option<Scope> {
        let mut pod = samples::pod(numbers.len());
        pod.host.insert(kind.to_owned(), 1);
        for (container, number) in pod.containers.iter_mut().zip(numbers) {
            container.namespaces.insert(kind.to_owned(), *number);
            container.identity.pid_inside = pid_inside;
        }
        match (held, &mut pod.sandbox) {
            (Some(number), Some(sandbox)) => drop(sandbox.namespaces.insert(kind.to_owned(), number)),
            _ => pod.sandbox = None,
        }
        scope(&pod, kind)
    }

    #[test]
    fn several_containers_tell_by_their_numbers() {
        assert_eq!(of("pid", &[1, 1], None, 1), Some(Scope::Host));
        assert_eq!(of("pid", &[2, 2], None, 1), Some(Scope::Pod));
        assert_eq!(of("pid", &[2, 3], None, 1), Some(Scope::Own));
        assert_eq!(of("pid", &[2, 3, 2], None, 1), Some(Scope::Mixed));
        assert_eq!(of("pid", &[2, 1], None, 1), Some(Scope::Mixed));
    }

    #[test]
    fn one_container_is_measured_by_the_sandbox() {
        assert_eq!(of("net", &[2], Some(2), 1), Some(Scope::Pod));
        assert_eq!(of("net", &[2], Some(3), 1), Some(Scope::Own));
        assert_eq!(of("net", &[2], None, 1), Some(Scope::Pod));
        assert_eq!(of("net", &[1], Some(1), 1), Some(Scope::Host));
        assert_eq!(of("pid", &[2], Some(5), 1), Some(Scope::Own));
        assert_eq!(of("pid", &[2], Some(5), 7), Some(Scope::Pod));
        assert_eq!(of("user", &[2], Some(1), 1), Some(Scope::Pod));
        assert_eq!(of("mnt", &[2], Some(5), 7), Some(Scope::Own));
    }

    #[test]
    fn a_sandbox_alone_has_only_some_kinds() {
        assert_eq!(of("uts", &[], Some(2), 1), Some(Scope::Pod));
        assert_eq!(of("uts", &[], Some(1), 1), Some(Scope::Host));
        assert_eq!(of("uts", &[], None, 1), None);
        assert_eq!(of("pid", &[], Some(2), 1), None);
    }
}
