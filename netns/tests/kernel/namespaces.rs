//! Namespaces: made, pinned, opened again, let go.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::process::Command;

use crisp_netns::namespaces::{
    CreateError, Created, NamespaceError, Pins, Request, adopt, create, ensure_pin_dir, reopen, run_in,
    tcp_socket_in, unpin,
};
use crisp_netns::sysctl::SysctlError;

use crate::host::{on_own_host, run_inside};

fn all(pins: Pins) -> Request<'static> {
    Request { net: true, ipc: true, uts: true, pins, ..Request::default() }
}

fn make(request: &Request<'_>) -> Result<Created, CreateError<io::Error>> {
    create(request, |_| Ok(())).map(|(created, ())| created)
}

/// Identity of the namespace behind a file, as `readlink` shows it.
fn identity(path: &str) -> String {
    fs::read_link(path).unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_process_spawned_inside_is_born_in_the_namespaces() {
    on_own_host(|host| {
        let request = Request { hostname: Some("inside"), ..all(host.pins("a")) };
        let (created, (seen, name)) = create(&request, |_| {
            let namespaces = ["/proc/self/ns/net", "/proc/self/ns/ipc", "/proc/self/ns/uts"];
            let seen = Command::new("readlink").args(namespaces).output()?.stdout;
            Ok::<_, io::Error>((
                String::from_utf8(seen).unwrap(),
                Command::new("uname").arg("-n").output()?.stdout,
            ))
        })
        .unwrap();
        assert_eq!(name, b"inside\n");
        let seen: Vec<&str> = seen.lines().collect();
        let held = [&created.net, &created.ipc, &created.uts]
            .map(|fd| identity(&format!("/proc/thread-self/fd/{}", fd.as_ref().unwrap().as_raw_fd())));
        assert_eq!(seen, held);
        for kind in ["net", "ipc", "uts"] {
            assert!(!seen.contains(&identity(&format!("/proc/thread-self/ns/{kind}")).as_str()), "{kind}");
        }
        unpin(&request.pins).unwrap();
    });
}

#[test]
fn the_loopback_is_up_and_the_caller_stays_where_it_was() {
    on_own_host(|host| {
        let before = identity("/proc/thread-self/ns/net");
        let request = Request { net: true, ..Request::default() };
        let created = make(&request).unwrap();
        assert_eq!(identity("/proc/thread-self/ns/net"), before);
        assert!(
            run_inside(crate::host::net_of(&created), "ip", &["-o", "link", "show", "lo"]).contains(",UP")
        );
        assert!(host.mounts().is_empty());
    });
}

#[test]
fn sysctls_are_written_inside_and_nowhere_else() {
    on_own_host(|_| {
        let files = ["net/ipv4/ip_unprivileged_port_start", "kernel/shm_rmid_forced", "fs/mqueue/msg_max"];
        let read = || files.map(|file| fs::read_to_string(format!("/proc/sys/{file}")).unwrap());
        let before = read();
        let sysctls = [
            ("net.ipv4.ip_unprivileged_port_start".to_owned(), "7".to_owned()),
            ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
            ("fs.mqueue.msg_max".to_owned(), "100".to_owned()),
        ];
        let request = Request { sysctls: &sysctls, ..all(Pins::default()) };
        let (_, inside) = create(&request, |_| Ok::<_, io::Error>(read())).unwrap();
        assert_eq!(inside.map(|value| value.trim().to_owned()), ["7", "1", "100"]);
        assert_eq!(read(), before);
    });
}

#[test]
fn namespaces_made_before_become_what_is_asked_for() {
    on_own_host(|host| {
        let ready = make(&all(Pins::default())).unwrap();
        let held = identity(&format!("/proc/thread-self/fd/{}", ready.net.as_ref().unwrap().as_raw_fd()));
        assert!(host.mounts().is_empty());
        let sysctls = [("kernel.shm_rmid_forced".to_owned(), "1".to_owned())];
        let request = Request { hostname: Some("taken"), sysctls: &sysctls, ..all(host.pins("a")) };
        let (created, said) = adopt(ready, &request, |_| {
            let line = "uname -n; cat /proc/sys/kernel/shm_rmid_forced; readlink /proc/self/ns/net";
            Command::new("sh").args(["-c", line]).output()
        })
        .unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), format!("taken\n1\n{held}\n"));
        assert_ne!(identity("/proc/thread-self/ns/net"), held);
        drop(created);
        reopen(&request.pins).unwrap();
        unpin(&request.pins).unwrap();
        let some = Request { uts: false, ..all(Pins::default()) };
        let others = adopt(make(&some).unwrap(), &all(Pins::default()), |_| Ok::<_, io::Error>(()));
        assert!(matches!(others, Err(CreateError::Namespace(NamespaceError::Request { .. }))));
        let failed = adopt(make(&all(Pins::default())).unwrap(), &all(host.pins("b")), |_| {
            Err::<(), _>(io::Error::other("no"))
        });
        assert!(matches!(failed, Err(CreateError::Inside(_))) && host.mounts().is_empty());
    });
}

#[test]
fn a_failure_inside_leaves_no_pin() {
    on_own_host(|host| {
        let mut pinned = 0;
        let failed = create(&all(host.pins("a")), |_| {
            pinned = host.mounts().len();
            Err::<(), _>(io::Error::other("no"))
        });
        assert!(matches!(failed, Err(CreateError::Inside(_))));
        assert_eq!(pinned, 3);
        assert_eq!((host.mounts(), host.files()), (vec![], vec![]));
    });
}

#[test]
fn a_refused_sysctl_leaves_no_pin() {
    on_own_host(|host| {
        let sysctls = [("net.ipv4.no_such_setting".to_owned(), "1".to_owned())];
        let request = Request { sysctls: &sysctls, ..all(host.pins("a")) };
        let error = make(&request).unwrap_err();
        assert!(
            matches!(&error, CreateError::Namespace(NamespaceError::Sysctl(SysctlError::Write { name, .. }))
                if name == "net.ipv4.no_such_setting"),
            "{error:?}"
        );
        assert_eq!((host.mounts(), host.files()), (vec![], vec![]));
    });
}

#[test]
fn a_pin_that_cannot_be_made_takes_the_others_along() {
    on_own_host(|host| {
        let pins = Pins { uts: Some(host.path("no-such-folder/uts")), ..host.pins("a") };
        let error = make(&all(pins)).unwrap_err();
        assert!(error.to_string().contains("no-such-folder/uts"), "{error}");
        assert_eq!((host.mounts(), host.files()), (vec![], vec![]));
    });
}

#[test]
fn a_pin_that_exists_is_left_alone() {
    on_own_host(|host| {
        let request = Request {
            net: true,
            pins: Pins { net: Some(host.path("n")), ..Pins::default() },
            ..all(Pins::default())
        };
        make(&request).unwrap();
        let before = host.mounts();
        assert!(make(&request).is_err());
        assert_eq!(host.mounts(), before);
        reopen(&request.pins).unwrap();
        unpin(&request.pins).unwrap();
    });
}

#[test]
fn pinned_namespaces_are_opened_again_until_they_are_unpinned() {
    on_own_host(|host| {
        let request = Request { hostname: Some("kept"), ..all(host.pins("a")) };
        drop(make(&request).unwrap());
        let mut again = reopen(&request.pins).unwrap();
        let stats = crisp_netns::stats::interface_stats(again.socket.as_mut().unwrap()).unwrap();
        assert!(stats.iter().all(|one| one.name != "eth0"));
        drop(again);
        unpin(&request.pins).unwrap();
        unpin(&request.pins).unwrap();
        assert_eq!((host.mounts(), host.files()), (vec![], vec![]));
        assert!(matches!(reopen(&request.pins), Err(NamespaceError::PinGone { .. })));
    });
}

#[test]
fn a_pin_without_its_mount_is_gone() {
    on_own_host(|host| {
        let path = host.path("n");
        fs::write(&path, "").unwrap();
        let pins = Pins { net: Some(path.clone()), ..Pins::default() };
        assert!(matches!(reopen(&pins), Err(NamespaceError::PinGone { path: gone }) if gone == path));
    });
}

#[test]
fn requests_that_would_touch_the_host_are_refused() {
    on_own_host(|host| {
        let sysctls = [("kernel.shm_rmid_forced".to_owned(), "1".to_owned())];
        let refused = [
            (Request { net: true, sysctls: &sysctls, ..Request::default() }, "needs a new ipc namespace"),
            (
                Request { net: true, hostname: Some("x"), ..Request::default() },
                "host name without a uts namespace",
            ),
            (
                Request { uts: true, pins: host.pins("a"), ..Request::default() },
                "pin for a namespace that is not made",
            ),
        ];
        for (request, reason) in refused {
            let error = make(&request).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let long = "x".repeat(65);
        assert!(make(&Request { hostname: Some(&long), ..all(Pins::default()) }).is_err());
        assert_eq!(host.files(), Vec::<String>::new());
    });
}

#[test]
fn a_socket_made_inside_acts_there_from_any_thread() {
    use nix::sys::socket::{SockaddrStorage, connect};
    on_own_host(|_| {
        let created = make(&all(Pins::default())).unwrap();
        let net = std::os::fd::AsFd::as_fd(created.net.as_ref().unwrap());
        for (address, ipv6) in [("127.0.0.1:0", false), ("[::1]:0", true)] {
            let inside = run_in(net, || std::net::TcpListener::bind(address).unwrap()).unwrap();
            let there = inside.local_addr().unwrap();
            // Nobody listens on this side.
            assert!(std::net::TcpStream::connect(there).is_err());
            let socket = tcp_socket_in(net, ipv6).unwrap();
            let connected = connect(socket.as_raw_fd(), &SockaddrStorage::from(there));
            assert!(matches!(connected, Ok(()) | Err(nix::errno::Errno::EINPROGRESS)), "{connected:?}");
            inside.accept().unwrap();
        }
    });
}

#[test]
fn run_in_refuses_what_is_no_network_namespace() {
    on_own_host(|_| {
        let created = make(&all(Pins::default())).unwrap();
        let uts = created.uts.as_ref().unwrap();
        let refused = run_in(std::os::fd::AsFd::as_fd(uts), || ());
        assert!(matches!(refused, Err(NamespaceError::Call { call: "setns", .. })), "{refused:?}");
    });
}

#[test]
fn a_pin_folder_is_one_mount_of_the_wanted_propagation_however_often_it_is_made() {
    on_own_host(|host| {
        for (name, shared) in [("s", true), ("p", false)] {
            let folder = host.path(name);
            ensure_pin_dir(&folder, shared).unwrap();
            ensure_pin_dir(&folder, shared).unwrap();
            let mounts: Vec<String> =
                host.mounts().into_iter().filter(|line| line.contains(&*folder.to_string_lossy())).collect();
            assert_eq!(mounts.len(), 1, "{mounts:?}");
            assert_eq!(mounts[0].contains(" shared:"), shared, "{mounts:?}");
            nix::mount::umount2(&folder, nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
    });
}
