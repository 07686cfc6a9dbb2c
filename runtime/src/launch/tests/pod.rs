//! The init of a shared PID namespace.

use super::harness::{Place, finish, report, rootfs, running};
use crate::launch::{PidNs, Report, pod_init, start};
use crisp_sys::process::{Exited, Wait, pidfd_send_signal, waitid};
use std::os::fd::AsFd;

#[test]
fn a_shared_init_shows_nothing_reaps_and_ignores_its_containers() {
    let place = Place::new("podinit");
    let mut init = pod_init(Some(place.cgroup("init").as_fd()), None, 100).unwrap();
    assert!(matches!(report(&mut init), Report::Ready));
    assert!(matches!(report(&mut init), Report::Executed));
    let proc = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", init.pid)).unwrap();
    assert_eq!(proc("comm"), "crisp-init\n");
    assert_eq!(proc("oom_score_adj"), "100\n");
    let status = proc("status");
    for line in ["Uid:\t65534\t65534\t65534\t65534", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000"]
    {
        assert!(status.lines().any(|found| found == line), "{line:?} is not in\n{status}");
    }
    assert_eq!(std::fs::read_dir(format!("/proc/{}/fd", init.pid)).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(format!("/proc/{}/root/", init.pid)).unwrap().count(), 0);

    // A grandchild that is orphaned at once, and signals that an init must survive.
    let script = "echo up; kill -TERM 1; kill -INT 1; kill -KILL 1; ls /proc/1/root/ 2>&1; ls /proc/1/fd 2>&1
        ( ( true & ) & ); sleep 0; while grep -q '(sh) Z' /proc/[0-9]*/stat 2>/dev/null; do :; done; echo reaped $$";
    let prepared = place.container(rootfs().0, script, |_| {});
    let cgroup = place.cgroup("web");
    let (child, output) = running(&prepared, PidNs::Join(init.pidfd.as_fd()), &cgroup);
    let finished = finish(&child, output);
    assert_eq!(finished.exited, Exited::Code(0), "{}", finished.output);
    assert!(
        finished.output.contains("reaped ") && !finished.output.contains("reaped 1\n"),
        "{}",
        finished.output
    );
    assert!(finished.output.contains("/proc/1/root/: Permission denied"), "{}", finished.output);
    let listed = finished.output.lines().any(|line| line.parse::<u32>().is_ok());
    assert!(!listed, "a descriptor of the init: {}", finished.output);
    assert_eq!(waitid(&init.pidfd, Wait::NoHang).unwrap(), None, "the init lives");

    pidfd_send_signal(&init.pidfd, libc::SIGTERM).unwrap();
    assert_eq!(waitid(&init.pidfd, Wait::Block).unwrap(), Some(Exited::Code(0)));
    let stdio = super::harness::stdio().0;
    let mut late = start(&prepared, PidNs::Join(init.pidfd.as_fd()), Some(cgroup.as_fd()), stdio).unwrap();
    let Report::Failed(error) = report(&mut late) else { panic!("joined what is gone") };
    waitid(&late.pidfd, Wait::Block).unwrap();
    assert_eq!(error.to_string(), "pod init exited");
}

#[test]
fn an_init_that_dies_takes_its_containers_along() {
    let place = Place::new("podkill");
    let mut init = pod_init(Some(place.cgroup("init").as_fd()), None, 0).unwrap();
    assert!(matches!(report(&mut init), Report::Ready));
    let prepared = place.container(rootfs().0, "echo up; sleep 1000", |_| {});
    let (child, _output) = running(&prepared, PidNs::Join(init.pidfd.as_fd()), &place.cgroup("web"));
    pidfd_send_signal(&init.pidfd, libc::SIGKILL).unwrap();
    assert_eq!(waitid(&child.pidfd, Wait::Block).unwrap(), Some(Exited::Signal(9)));
    assert_eq!(waitid(&init.pidfd, Wait::Block).unwrap(), Some(Exited::Signal(9)));
}
