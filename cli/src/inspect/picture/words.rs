//! What each kind of namespace is, in words for people who have never read about any.

/// A kind in plain words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    pub(super) title: &'static str,
    /// When all containers share one.
    pub(super) shared: &'static str,
    /// When a container has one for itself; goes on after the container's name.
    pub(super) own: &'static str,
    /// When it is the host's.
    pub(super) host: &'static str,
}

/// The words for a kind of [`super::super::namespaces::KINDS`].
pub(super) fn of(kind: &str) -> Words {
    match kind {
        "net" => Words {
            title: "Network",
            shared: "The same addresses and ports for every container: they reach each other at localhost, and no \
                     two can listen on the same port.",
            own: "addresses and ports of its own",
            host: "No network of its own: the host's addresses are the pod's, and a port that it takes is taken on \
                   the host.",
        },
        "ipc" => Words {
            title: "Shared memory",
            shared: "Containers can hand data to each other in memory: System V shared memory, semaphores, message \
                     queues.",
            own: "shared memory and message queues of its own",
            host: "Shared memory and message queues are the host's: programs of the host and of the pod reach each \
                   other's.",
        },
        "uts" => Words {
            title: "Hostname",
            shared: "The name that every container is told when it asks which machine it runs on.",
            own: "a hostname of its own",
            host: "The pod is told the host's own name.",
        },
        "pid" => Words {
            title: "Processes",
            shared: "Every container sees the processes of the others and can signal them. Process 1 is the pod's, \
                     not an application.",
            own: "sees only its own, counted from 1",
            host: "Every container sees all processes of the host.",
        },
        "mnt" => Words {
            title: "Files",
            shared: "Every container sees the same tree of files.",
            own: "a tree of its own: its image, and what is mounted in it",
            host: "The tree of files is the host's.",
        },
        "cgroup" => Words {
            title: "View of limits",
            shared: "Every container sees the same part of the host's tree of limits.",
            own: "sees its own limits only, not the host's tree of them",
            host: "Containers see their place in the host's whole tree of limits.",
        },
        "user" => Words {
            title: "Users",
            shared: "Root inside is nobody special outside: each user of the pod is another one on the host, with no \
                     rights there.",
            own: "its users are others on the host, with no rights there",
            host: "Users are the host's: root in a container is the host's root, but for the rights that were taken \
                   from it.",
        },
        _ => Words { title: "Other", shared: "Shared.", own: "its own", host: "The host's." },
    }
}
