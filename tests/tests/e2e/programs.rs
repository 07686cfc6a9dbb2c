//! What a container is told to run, and by whom: arguments and environment at their limits, no cross-talk, no hooks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{container_config, refused, words};
use crisp_tests::node::{Node, Pod};
use crisp_tests::place;
use crisp_tests::untouched;
use tonic::Code;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "c09_no_hook_is_honoured", needs: &[], images: &["busybox"], run: hooks },
    Case {
        name: "c10_containers_made_at_once_have_their_own_settings",
        needs: &[],
        images: &["busybox"],
        run: cross_talk,
    },
    Case {
        name: "c11_an_environment_is_checked_or_passed_on_whole",
        needs: &[],
        images: &["busybox"],
        run: environment,
    },
    Case {
        name: "c11_what_execve_cannot_take_is_a_failed_start",
        needs: &[],
        images: &["busybox"],
        run: too_big,
    },
    Case { name: "c11_a_command_that_is_none_is_refused", needs: &[], images: &["busybox"], run: commands },
];

fn hooks(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let program = node.folder().join("hook");
        let done = node.folder().join("hooked");
        fs::write(&program, format!("#!/bin/sh\ntouch {}\n", done.display()))?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let hook = serde_json::json!({
            "version": "1.0.0",
            "hook": { "path": program.display().to_string() },
            "when": { "always": true, "annotations": { ".*": ".*" } },
            "stages": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        });
        // Where others look for hooks; /etc is the test's own.
        let folder = Path::new("/etc/containers/oci/hooks.d");
        let new = !Path::new("/etc/containers").exists();
        fs::create_dir_all(folder)?;
        fs::write(folder.join("crisp-test.json"), hook.to_string())?;

        let one = format!(r#"[{{"path":"{}"}}]"#, program.display());
        let annotations = [
            ("org.opencontainers.hooks", format!(r#"{{"prestart":{one},"createRuntime":{one}}}"#)),
            ("hooks.prestart", one.clone()),
            ("run.oci.hooks.prestart", program.display().to_string()),
            ("io.kubernetes.cri-o.Hooks", one.clone()),
            ("io.containers.trace-syscall", format!("of:{}", canary.text("trace"))),
            ("nri.io/hook", one),
        ];
        let annotations = annotations.map(|(key, value)| (key.to_owned(), value));
        let mut config = node.pod_config("hooks");
        config.annotations.extend(annotations.clone());
        let pod = node.run_pod_as(config)?;
        // A workload's own idea of where hooks are: the same file in its root, and a program that writes it there.
        let line = "mkdir -p /etc/containers/oci/hooks.d /usr/share/containers/oci/hooks.d; \
                    echo \"$HOOK\" | tee /etc/containers/oci/hooks.d/x.json >/usr/share/containers/oci/hooks.d/x.json; \
                    sleep 3600";
        let mut config = container_config("c", "busybox", &["sh", "-c", line]);
        config.annotations.extend(annotations);
        config.envs = vec![cri::KeyValue { key: "HOOK".to_owned(), value: hook.to_string().into() }];
        let id = node.launch_as(&pod, &config)?;
        node.cri()
            .shell(&id, "until [ -s /usr/share/containers/oci/hooks.d/x.json ]; do sleep 0.05; done")?;
        ensure!(node.cri().container(&id)?.annotations == config.annotations, "annotations are only shown");
        node.cri().stop(&id, 0)?;
        node.end_pod(&pod)?;
        fs::remove_file(folder.join("crisp-test.json"))?;
        if new {
            fs::remove_dir_all("/etc/containers")?;
        }
        ensure!(!done.exists(), "a hook was run");
        Ok(())
    })
}

/// Two containers from one image in one pod, at once, each with settings of its own; each says what it got. Two thousand
/// containers where nothing is emulated.
fn cross_talk(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("cross-talk")?;
        for round in 0..place::rounds(1000, 100) {
            std::thread::scope(|scope| -> Result<()> {
                let sides = ["left", "right"].map(|side| {
                    let (node, pod) = (&*node, &pod);
                    scope.spawn(move || one_side(node, pod, side, round))
                });
                for side in sides {
                    side.join()
                        .map_err(|_| anyhow!("a client panicked"))?
                        .with_context(|| format!("round {round}"))?;
                }
                Ok(())
            })?;
        }
        node.end_pod(&pod)
    })
}

fn one_side(node: &Node, pod: &Pod, side: &str, round: usize) -> Result<()> {
    let mine = format!("{side}-{round}");
    let line = "echo $TOKEN $(pwd) $(id -u) $0";
    let mut config = container_config(side, "busybox", &["sh", "-c", line, &mine]);
    config.metadata = Some(cri::ContainerMetadata { name: side.to_owned(), attempt: round as u32 });
    config.log_path = format!("{mine}.log");
    config.envs = vec![cri::KeyValue { key: "TOKEN".to_owned(), value: mine.clone().into() }];
    config.working_dir = format!("/{mine}");
    let user = 1000 + i64::try_from(round % 50)? * 2 + i64::from(side == "right");
    let security =
        config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).context("security")?;
    security.run_as_user = Some(cri::Int64Value { value: user });
    let id = node.launch_as(pod, &config)?;
    let status = node.wait_for_exit(&id)?;
    let said: Vec<_> = crate::logs::read(node, &id)?.into_iter().map(|line| line.content).collect();
    ensure!(said == [format!("{mine} /{mine} {user} {mine}")], "{mine} got {said:?}");
    ensure!(status.exit_code == 0, "{status:?}");
    node.cri().remove(&id)?;
    Ok(fs::remove_file(status.log_path)?)
}

fn environment(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("environment")?;
        let with = |key: &str, value: &[u8]| {
            let mut config = container_config("c", "busybox", &["true"]);
            config.envs = vec![cri::KeyValue { key: key.to_owned(), value: value.to_vec() }];
            config
        };
        for (key, value) in [("", &b"x"[..]), ("A=B", b"x"), ("A\0", b"x"), ("A", b"x\0y")] {
            let reply = node.cri().create(&pod.id, &with(key, value), &pod.config);
            let message = refused(reply, Code::InvalidArgument)?;
            ensure!(message.contains("envs"), "{message}");
        }
        ensure!(node.cri().containers()?.iter().all(|one| one.pod_sandbox_id != pod.id), "left behind");

        // Ten thousand of them, and one with all that a value may have.
        let mut config = container_config(
            "many",
            "busybox",
            &["sh", "-c", "env | grep -c ^N; printf '%s' \"$ODD\" | wc -c"],
        );
        config.envs = (0..10_000)
            .map(|number| cri::KeyValue { key: format!("N{number}"), value: b"v".to_vec() })
            .collect();
        let odd = "two\nlines=and 'quotes' \"$HOME\" \u{fc}\r\t\u{1f980}";
        config.envs.push(cri::KeyValue { key: "ODD".to_owned(), value: odd.to_owned().into() });
        let id = node.launch_as(&pod, &config)?;
        node.wait_for_exit(&id)?;
        let said: Vec<_> = crate::logs::read(node, &id)?.into_iter().map(|line| line.content).collect();
        ensure!(said == ["10000".to_owned(), odd.len().to_string()], "{said:?}");

        // Bytes that are no text, for the container and for what is executed in it.
        let bytes = b"\xff\xfe=\xc3\x28\xef\xbf\xbd";
        let show = ["sh", "-c", "printf %s \"$A\" | od -An -tx1; sleep 3600"];
        let mut config = container_config("binary", "busybox", &show);
        config.envs = vec![cri::KeyValue { key: "A".to_owned(), value: bytes.to_vec() }];
        let id = node.launch_as(&pod, &config)?;
        let said = crate::logs::wait_for_lines(node, &id, 1)?.remove(0).content;
        let wanted = " ff fe 3d c3 28 ef bf bd";
        ensure!(said == wanted, "{said:?}");
        let said = node.cri().shell(&id, "printf %s \"$A\" | od -An -tx1")?;
        ensure!(said.trim_end() == wanted, "{said:?}");
        node.end_pod(&pod)
    })
}

fn too_big(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("too-big")?;
        let mut one = container_config("one-env", "busybox", &["true"]);
        one.envs = vec![cri::KeyValue { key: "A".to_owned(), value: vec![b'x'; 1 << 20] }];
        let mut argument = container_config("one-arg", "busybox", &["true"]);
        argument.args = vec!["x".repeat(1 << 20)];
        let mut all = container_config("all-args", "busybox", &["true"]);
        all.args = vec!["x".repeat(100_000); 25];
        for config in [one, argument, all] {
            let id = node.cri().create(&pod.id, &config, &pod.config)?;
            let status = node.cri().start(&id).err().context("started with more than the kernel takes")?;
            ensure!(status.message().contains("argument list too long"), "{status:?}");
            let ended = node.cri().container(&id)?;
            ensure!(ended.state() == cri::ContainerState::ContainerExited, "{ended:?}");
            ensure!((ended.exit_code, ended.reason.as_str()) == (128, "StartError"), "{ended:?}");
            node.cri().remove(&id)?;
        }
        // What no kernel takes is refused before.
        let mut hopeless = container_config("hopeless", "busybox", &["true"]);
        hopeless.args = vec!["x".repeat(100_000); 100];
        let message = refused(node.cri().create(&pod.id, &hopeless, &pod.config), Code::InvalidArgument)?;
        ensure!(message.contains("argument list too long"), "{message}");
        node.end_pod(&pod)
    })
}

fn commands(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("commands")?;
        for command in [&["", "x"][..], &["sh\0"], &["sh", "-c", "a\0b"]] {
            let config = container_config("c", "busybox", command);
            let message = refused(node.cri().create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
            ensure!(message.contains("command"), "{message}");
        }
        let id = node.launch(&pod, "up", "busybox", &["sleep", "3600"])?;
        for command in [&[][..], &[""], &["sh\0"], &["sh", "a\0b"]] {
            let request = cri::ExecSyncRequest { container_id: id.clone(), cmd: words(command), timeout: 0 };
            let message = refused(node.cri().exec_sync(request), Code::InvalidArgument)?;
            ensure!(message.contains("cmd"), "{message}");
        }
        // The image's own command is there when none is given.
        let config = cri::ContainerConfig { command: Vec::new(), ..container_config("none", "busybox", &[]) };
        let none = node.launch_as(&pod, &config)?;
        ensure!(node.wait_for_exit(&none)?.exit_code == 0, "the image's shell reads an empty input and ends");
        node.end_pod(&pod)
    })
}
