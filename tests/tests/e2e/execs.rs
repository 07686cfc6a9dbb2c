//! Exec at the edges: of a container's life, of its processes, of what a program can be; and what it inherits.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{container_config, refused, secured, words};
use crisp_tests::node::Node;
use crisp_tests::streaming::WebSocket;
use crisp_tests::wait;
use tonic::Code;

use crate::case::Case;
use crate::streaming::{attach_url, exec_request, exec_url, sleeper, wait_until_alone};

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "e01_exec_at_every_point_of_a_life", needs: &[], images: &["busybox"], run: life },
    Case { name: "e02_a_child_that_keeps_the_pipes", needs: &[], images: &["busybox"], run: kept_pipes },
    Case { name: "e03_what_cannot_be_executed_is_named", needs: &[], images: &["busybox"], run: programs },
    Case { name: "e05_attached_input_loses_nothing", needs: &[], images: &["busybox"], run: attached_input },
    Case { name: "e06_exec_inherits_the_containers_own", needs: &[], images: &["busybox"], run: inherits },
    Case { name: "200_execs_at_once", needs: &[], images: &["busybox"], run: at_once },
    Case { name: "execs_leave_nothing_behind", needs: &[], images: &["busybox"], run: nothing_left },
];

const V5: &str = "v5.channel.k8s.io";

fn sync(
    node: &Node,
    id: &str,
    command: &[&str],
    timeout: i64,
) -> Result<cri::ExecSyncResponse, tonic::Status> {
    let request = cri::ExecSyncRequest { container_id: id.to_owned(), cmd: words(command), timeout };
    node.cri().exec_sync(request)
}

fn life(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("life")?;
    let config = container_config("created", "busybox", &["sleep", "3600"]);
    let created = node.cri().create(&pod.id, &config, &pod.config)?;
    refused(sync(node, &created, &["true"], 0), Code::FailedPrecondition)?;
    refused(node.cri().exec_url(exec_request(&created, &["true"], false, false)), Code::FailedPrecondition)?;
    // While its container ends, an exec has its own end: an exit code, or an error that says why there is none.
    let id = node.launch(&pod, "ending", "busybox", &["sleep", "3600"])?;
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(WebSocket::open(&exec_url(node, &id, &["sleep", "2000"], true, false)?, V5)?);
    }
    node.cri().stop(&id, 0)?;
    for mut session in sessions {
        let told = session.told()?;
        let known =
            told.code().is_ok_and(|code| code == 137) || told.failure().is_ok_and(|text| !text.is_empty());
        ensure!(known, "{told:?}");
    }
    refused(sync(node, &id, &["true"], 0), Code::FailedPrecondition)?;
    // A container whose first process is about to end by itself.
    for round in 0..10 {
        let id = node.launch(&pod, &format!("short-{round}"), "busybox", &["sleep", "0.05"])?;
        loop {
            match sync(node, &id, &["true"], 0) {
                Ok(reply) => ensure!([0, 137].contains(&reply.exit_code), "{reply:?}"),
                Err(status) => {
                    ensure!(
                        !status.message().is_empty() && status.code() != Code::DeadlineExceeded,
                        "{status:?}"
                    );
                    break;
                }
            }
        }
    }
    node.end_pod(&pod)
}

fn kept_pipes(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "pipes")?;
    let line = "(setsid sleep 2000 &) ; (setsid sleep 2001 &) ; echo said";
    // ExecSync: the pipes stay open past the limit, and everything of the exec is killed then.
    let begin = Instant::now();
    refused(sync(node, &id, &["sh", "-c", line], 1), Code::DeadlineExceeded)?;
    ensure!(begin.elapsed() >= Duration::from_secs(1), "before its time");
    wait_until_alone(node, &id)?;
    // A session ends with its first process, and has all that this one has said.
    let told = WebSocket::open(&exec_url(node, &id, &["sh", "-c", line], false, false)?, V5)?.told()?;
    ensure!(told.out() == "said\n" && told.code()? == 0, "{told:?}");
    // What it has left to itself stays, as a service that was started by hand would.
    let left = node.cri().shell(&id, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")?;
    ensure!(left.contains("sleep 2000") && left.contains("sleep 2001"), "{left}");
    node.cri().stop(&id, 0)?;
    node.end_pod(&pod)
}

fn programs(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "programs")?;
    node.cri().shell(
        &id,
        "mkfifo /fifo; chmod 777 /fifo; mkdir /dir; echo '#!/loop' >/loop; chmod 755 /loop; echo x >/plain",
    )?;
    node.cri().shell(
        &id,
        "echo '#!/no/such/interpreter' >/script; chmod 755 /script; printf '\\0' >/empty; chmod 755 /empty",
    )?;
    let mut texts = Vec::new();
    for program in [
        "nosuch",
        "/nosuch",
        "/fifo",
        "/dir",
        "/plain",
        "/loop",
        "/script",
        "/empty",
        "/dir/../fifo",
        "./nosuch",
    ] {
        let sync = sync(node, &id, &[program], 0).err().with_context(|| format!("{program} was executed"))?;
        ensure!(sync.message().contains(program), "{program}: {sync:?}");
        let told = WebSocket::open(&exec_url(node, &id, &[program], false, false)?, V5)?.told()?;
        ensure!(told.failure()?.contains(program), "{program}: {told:?}");
        texts.push((program, sync.message().to_owned()));
    }
    for (program, words) in [
        ("nosuch", "executable file not found"),
        ("/nosuch", "no such file"),
        ("/fifo", "permission denied"),
        ("/dir", "permission denied"),
        ("/plain", "permission denied"),
    ] {
        let (_, text) = texts.iter().find(|(name, _)| *name == program).context("not tried")?;
        ensure!(text.to_lowercase().contains(words), "{program}: {text}");
    }
    // A working directory that is gone is made again, as it was at first; where a file is in its way, that is said.
    let mut config = container_config("cwd", "busybox", &["sleep", "3600"]);
    config.working_dir = "/work".to_owned();
    let cwd = node.launch_as(&pod, &config)?;
    node.cri().shell(&cwd, "rmdir /work")?;
    ensure!(node.cri().shell(&cwd, "pwd; rmdir /work; echo x >/work")? == "/work\n");
    let file = sync(node, &cwd, &["true"], 0).err().context("executed in a directory that is a file")?;
    ensure!(file.message().contains("/work"), "{file:?}");
    // One that its user may enter.
    let mut config = secured("closed", "busybox", &["sleep", "3600"], |security| {
        security.run_as_user = Some(cri::Int64Value { value: 1234 });
    });
    config.working_dir = "/tmp/closed".to_owned();
    let closed = node.launch_as(&pod, &config)?;
    ensure!(node.cri().shell(&closed, "pwd; id -u")? == "/tmp/closed\n1234\n");
    node.end_pod(&pod)
}

fn attached_input(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("input")?;
    let config = cri::ContainerConfig {
        stdin: true,
        stdin_once: true,
        ..container_config("once", "busybox", &["sh", "-c", "sha256sum; echo end"])
    };
    let id = node.launch_as(&pod, &config)?;
    let mut socket = WebSocket::open(&attach_url(node, &id, true, false)?, V5)?;
    // More than all buffers on the way hold, and the end right behind it.
    let line = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n";
    for _ in 0..1000 {
        socket.send(0, &line.repeat(100))?;
    }
    socket.end_input()?;
    let told = socket.told()?;
    let digest = crate::streaming::hex(&<sha2::Sha256 as sha2::Digest>::digest(line.repeat(100_000)));
    ensure!(told.out() == format!("{digest}  -\nend\n") && told.code()? == 0, "{told:?}");

    // A terminal passes everything on, raw: no byte means anything to the runtime.
    let config = cri::ContainerConfig {
        stdin: true,
        stdin_once: true,
        tty: true,
        ..container_config(
            "tty",
            "busybox",
            &[
                "sh",
                "-c",
                "stty raw -echo; echo ready; dd bs=1 count=256 2>/dev/null | od -An -v -tx1; echo over; sleep 3600",
            ],
        )
    };
    let id = node.launch_as(&pod, &config)?;
    crate::logs::wait_for_lines(node, &id, 1)?;
    let mut socket = WebSocket::open(&attach_url(node, &id, true, true)?, V5)?;
    socket.send(0, &(0..=255).collect::<Vec<u8>>())?;
    let said = socket.wait_for("over")?;
    let numbers: Vec<u8> = said
        .split_whitespace()
        .filter_map(|word| u8::from_str_radix(word, 16).ok().filter(|_| word.len() == 2))
        .collect();
    ensure!(numbers == (0..=255).collect::<Vec<u8>>(), "{said:?}");
    // The end of a client's input is not a terminal's.
    socket.end_input()?;
    drop(socket);
    ensure!(node.cri().container(&id)?.state() == cri::ContainerState::ContainerRunning);
    node.cri().stop(&id, 0)?;
    node.end_pod(&pod)
}

fn inherits(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("inherits")?;
    // What the process itself is shows in these, and its program's own numbers do not.
    let line = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Cpus_allowed_list|Mems_allowed_list|Umask|SigIgn|SigBlk)' /proc/self/status; \
        cat /proc/self/oom_score_adj /proc/self/limits /proc/self/personality /proc/self/cgroup; \
        readlink /proc/self/ns/*; cat /proc/self/attr/current 2>/dev/null; echo; env | sort; pwd; nice";
    let script = format!("({line}) >/first; exec sleep 3600");
    let config = secured("c", "busybox", &["sh", "-c", &script], |security| {
        security.no_new_privs = true;
        security.seccomp = Some(cri::SecurityProfile { profile_type: 0, localhost_ref: String::new() });
    });
    let id = node.launch_as(&pod, &config)?;
    wait::until("the container to have written", wait::LONG, || {
        node.cri().shell(&id, "test \"$(tail -n 1 /first)\" = 0").map_err(|error| format!("{error:#}"))
    })?;
    let first = node.cri().shell(&id, "cat /first")?;
    let clean = |text: &str| {
        let own = |line: &&str| {
            !line.starts_with("0::")
                && !line.starts_with("SHLVL=")
                && !line.starts_with("_=")
                && !line.starts_with("TERM=")
        };
        text.replace('\r', "").lines().filter(own).map(str::to_owned).collect::<Vec<_>>()
    };
    let told = WebSocket::open(&exec_url(node, &id, &["sh", "-c", line], false, false)?, V5)?.told()?;
    ensure!(clean(&told.out()) == clean(&first), "exec:\n{}\nfirst:\n{first}", told.out());
    ensure!(told.out().contains("Seccomp:\t2") && told.out().contains("NoNewPrivs:\t1"), "{}", told.out());
    let sync = node.cri().shell(&id, line)?;
    ensure!(clean(&sync) == clean(&first), "exec:\n{sync}\nfirst:\n{first}");
    // Nothing but its three streams is open.
    for tty in [false, true] {
        let command = ["sh", "-c", "ls /proc/self/fd | tr '\\n' ' '; echo over"];
        let told = WebSocket::open(&exec_url(node, &id, &command, true, tty)?, V5)?.told()?;
        ensure!(told.out().trim_end() == "0 1 2 3 over", "{told:?}");
    }
    node.end_pod(&pod)
}

fn at_once(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "at-once")?;
    let mut sessions = Vec::new();
    for number in 0..200 {
        let line = format!("read line; echo {number} $line; exit {}", number % 50);
        sessions.push(WebSocket::open(&exec_url(node, &id, &["sh", "-c", &line], true, false)?, V5)?);
    }
    // All run before the first ends.
    wait::until("200 shells", wait::LONG, || {
        let count =
            node.cri().shell(&id, "pgrep -f 'read lin[e]' | wc -l").map_err(|error| format!("{error:#}"))?;
        if count.trim().parse::<u32>().is_ok_and(|count| count >= 200) { Ok(()) } else { Err(count) }
    })?;
    for session in &mut sessions {
        session.send(0, b"typed\n")?;
    }
    for (number, session) in sessions.iter_mut().enumerate() {
        let told = session.told()?;
        ensure!(told.out() == format!("{number} typed\n") && told.code()? == number as i32 % 50, "{told:?}");
    }
    wait_until_alone(node, &id)?;
    node.end_pod(&pod)
}

/// Resident kilobytes and open descriptors of a process.
pub(crate) fn usage(pid: i64) -> Result<(u64, usize)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kilobytes = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok((kilobytes, fs::read_dir(format!("/proc/{pid}/fd"))?.count()))
}

fn nothing_left(node: &mut Node) -> Result<()> {
    let rounds: u32 = std::env::var("CRISP_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    let (pod, id) = sleeper(node, "nothing-left")?;
    let monitor = crate::streaming::monitor(node, &pod)?;
    let daemon = i64::from(node.daemon_pid()?);
    let cgroup = node.cgroup(&node.cgroup_below("pod-nothing-left")).join(&id);
    let one = |node: &Node| -> Result<()> {
        let told = WebSocket::open(&exec_url(node, &id, &["true"], false, false)?, V5)?.told()?;
        ensure!(told.code()? == 0, "{told:?}");
        Ok(())
    };
    // The first ones fill what is kept for later ones.
    for _ in 0..rounds.min(300) {
        one(node)?;
    }
    let before = [usage(daemon)?, usage(monitor)?];
    for _ in 0..rounds {
        one(node)?;
    }
    wait::until("everything of the execs to be gone", wait::LONG, || {
        let after = [usage(daemon), usage(monitor)].map(|usage| usage.map_err(|error| error.to_string()));
        let [after, after_monitor] = [after[0].clone()?, after[1].clone()?];
        let groups = fs::read_dir(&cgroup).map_err(|error| error.to_string())?.flatten();
        let execs = groups.filter(|entry| entry.file_name().to_string_lossy().starts_with("exec-")).count();
        let same = (after.1, after_monitor.1) == (before[0].1, before[1].1) && execs == 0;
        if same { Ok(()) } else { Err(format!("{before:?} {after:?} {after_monitor:?}, {execs} cgroups")) }
    })?;
    let after = [usage(daemon)?, usage(monitor)?];
    ensure!(
        after[0].0 <= before[0].0 + 4096 && after[1].0 <= before[1].0 + 256,
        "memory: {before:?}, then {after:?}"
    );
    wait_until_alone(node, &id)?;
    node.end_pod(&pod)
}
