//! tty, stdin and stdin_once of a container, as far as they show without a client that is attached.

use anyhow::{Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::container_config;
use crisp_tests::node::{Node, Pod};
use crisp_tests::streaming::WebSocket;

use crate::case::Case;
use crate::logs;
use crate::streaming::attach_url;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "a_terminal_is_all_of_its_streams", needs: &[], images: &["busybox"], run: terminal },
    Case { name: "a_terminal_belongs_to_its_user", needs: &[], images: &["busybox"], run: user },
    Case { name: "standard_input_stays_open_only_on_demand", needs: &[], images: &["busybox"], run: input },
    Case {
        name: "e05_what_a_client_sent_before_it_left_arrives",
        needs: &[],
        images: &["busybox"],
        run: leaves,
    },
];

fn launch(node: &Node, pod: &Pod, config: &cri::ContainerConfig) -> Result<String> {
    let id = node.cri().create(&pod.id, config, &pod.config)?;
    node.cri().start(&id)?;
    Ok(id)
}

fn terminal(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("terminal")?;
    let script =
        "tty; echo $TERM; echo err >&2; echo on > /dev/tty; test /dev/console -ef /dev/pts/0 && echo console
        test -t 0 && test -t 1 && test -t 2 && echo all; sleep 3600";
    let config =
        cri::ContainerConfig { tty: true, ..container_config("c", "busybox", &["sh", "-c", script]) };
    let id = launch(node, &pod, &config)?;
    let log = logs::wait_for_lines(node, &id, 6)?;
    let said: Vec<&str> = log.iter().map(|line| line.content.as_str()).collect();
    ensure!(said == ["/dev/pts/0", "xterm", "err", "on", "console", "all"], "{said:?}");
    ensure!(log.iter().all(|line| line.stream == "stdout"), "{log:?}");

    // A further process that is listened to has pipes, and the terminal's type in its environment.
    let said =
        node.cri().shell(&id, "echo $TERM; test -t 1 || echo pipe; ls /proc/self/fd | tr '\\n' ' '")?;
    ensure!(said.trim_end() == "xterm\npipe\n0 1 2 3", "{said:?}");
    node.cri().stop(&id, 0)?;
    node.end_pod(&pod)
}

fn user(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("terminal-user")?;
    let script = "echo opened > $(tty); stat -c '%u %g %a' /dev/pts/0";
    let mut config =
        cri::ContainerConfig { tty: true, ..container_config("c", "busybox", &["sh", "-c", script]) };
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.run_as_user = Some(cri::Int64Value { value: 1234 });
    let id = launch(node, &pod, &config)?;
    ensure!(node.wait_for_exit(&id)?.exit_code == 0, "{:?}", logs::read(node, &id)?);
    let said: Vec<_> = logs::read(node, &id)?.into_iter().map(|line| line.content).collect();
    ensure!(said == ["opened", "1234 5 620"], "{said:?}");
    node.end_pod(&pod)
}

/// A client that leaves without a word: the container has all that it had sent, and then the end.
fn leaves(node: &mut Node) -> Result<()> {
    const SENT: usize = 50_000;
    let pod = node.run_pod("leaves")?;
    for round in 0..20 {
        // It reads only when it is told to, so that all of it is on its way when the client leaves.
        let script = "trap go=1 USR1; echo up; while [ -z $go ]; do sleep 0.05; done; wc -c";
        let config = cri::ContainerConfig {
            stdin: true,
            stdin_once: true,
            ..container_config(&format!("c{round}"), "busybox", &["sh", "-c", script])
        };
        let id = launch(node, &pod, &config)?;
        logs::wait_for_lines(node, &id, 1)?;
        let mut client = WebSocket::open(&attach_url(node, &id, true, false)?, "v5.channel.k8s.io")?;
        client.send(0, &[b'x'; SENT])?;
        drop(client);
        let pid = node.cri().pid(&id)?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGUSR1)?;
        ensure!(node.wait_for_exit(&id)?.exit_code == 0);
        let said: Vec<_> = logs::read(node, &id)?.into_iter().map(|line| line.content).collect();
        ensure!(said == ["up".to_owned(), SENT.to_string()], "round {round}: {said:?}");
    }
    node.end_pod(&pod)
}

fn input(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("input")?;
    let closed = container_config("closed", "busybox", &["sh", "-c", "cat; echo end"]);
    let open = |name: &str, tty| cri::ContainerConfig {
        stdin: true,
        stdin_once: true,
        tty,
        ..container_config(name, "busybox", &["sh", "-c", "echo ready; cat; echo end"])
    };
    let pipe = launch(node, &pod, &open("pipe", false))?;
    let terminal = launch(node, &pod, &open("terminal", true))?;
    let closed = launch(node, &pod, &closed)?;
    node.wait_for_exit(&closed)?;
    ensure!(logs::read(node, &closed)?.len() == 1, "the container without input did not see its end");
    logs::wait_for_lines(node, &pipe, 1)?;
    logs::wait_for_lines(node, &terminal, 1)?;
    // Nobody is attached, and the daemon's end is not the input's end.
    node.kill_and_restart()?;
    for id in [&pipe, &terminal] {
        ensure!(node.cri().container(id)?.state() == cri::ContainerState::ContainerRunning, "it has ended");
        ensure!(logs::read(node, id)?.len() == 1, "it saw the end of its input");
        node.cri().stop(id, 0)?;
    }
    node.end_pod(&pod)
}
