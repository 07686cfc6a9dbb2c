use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::*;

/// A process group for each plugin: what a program that makes no session of its own cannot leave.
#[derive(Debug, Default)]
pub(in crate::cni) struct Groups;

#[derive(Debug)]
struct Group;

impl Confine for Groups {
    fn confine(&self, _: &str) -> io::Result<Box<dyn Confined>> {
        Ok(Box::new(Group))
    }
}

impl Confined for Group {
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.process_group(0);
        command
    }

    fn end(&mut self, child: u32) -> io::Result<()> {
        if child != 0 {
            // Not there: everything has ended.
            let _ = killpg(Pid::from_raw(child as i32), Signal::SIGKILL);
        }
        Ok(())
    }
}

/// Writes an executable script.
pub(in crate::cni) fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn run_text(text: &str, input: &[u8], limit: Duration) -> Result<Vec<u8>, Failure> {
    let folder = tempfile::tempdir().unwrap();
    let program =
        script(folder.path(), "plugin", &text.replace("FOLDER", &folder.path().display().to_string()));
    let mut place = Groups.confine("x").unwrap();
    let environment = [("CNI_COMMAND", Some("ADD".to_owned())), ("HOME", None)];
    let ran = run(place.as_mut(), &program, &environment, input, limit);
    if let Ok(pid) = fs::read_to_string(folder.path().join("pid")) {
        let pid = Pid::from_raw(pid.trim().parse().unwrap());
        let until = Instant::now() + LONG;
        while kill(pid, None).is_ok() && !dead(pid) {
            assert!(Instant::now() < until, "{pid} lives on");
            std::thread::yield_now();
        }
    }
    ran.and_then(Output::success)
}

/// Ended, and not reaped by whoever is its parent now.
fn dead(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

const LONG: Duration = Duration::from_secs(120);

#[test]
fn environment_input_and_output_pass_through() {
    let said = run_text("cat; echo \"$CNI_COMMAND ${HOME-none}\"; [ -n \"$PATH\" ]", b"{}", LONG).unwrap();
    assert_eq!(String::from_utf8(said).unwrap(), "{}ADD none\n");
}

#[test]
fn large_streams_in_all_directions_do_not_block_each_other() {
    let input = vec![b'x'; 700_000];
    let text = "head -c 500000 /dev/zero >&2; cat; head -c 2000000 /dev/zero >&2";
    assert_eq!(run_text(text, &input, LONG).unwrap(), input);
    // Nor does one that reads nothing.
    assert_eq!(run_text("echo done", &input, LONG).unwrap(), b"done\n");
}

#[test]
fn too_much_output_ends_the_plugin() {
    let failure = run_text("echo $$ >FOLDER/pid; exec cat /dev/zero", b"", LONG).unwrap_err();
    assert!(matches!(failure, Failure::Flood { .. }), "{failure}");
    let failure = run_text("exec cat /dev/zero >&2", b"", Duration::from_secs(1)).unwrap_err();
    assert!(matches!(failure, Failure::Time { .. }), "{failure}");
}

#[test]
fn when_its_time_has_passed_nothing_of_it_is_left() {
    // A child of a child, whose parent is gone and which holds the standard output.
    let text = "(sh -c 'echo $$ >FOLDER/pid; exec sleep 1000' &) ; echo waiting >&2; sleep 1000";
    let failure = run_text(text, b"", Duration::from_secs(1)).unwrap_err();
    assert!(failure.to_string().contains("after 1 s and was killed: waiting"), "{failure}");
}

#[test]
fn what_holds_the_output_of_an_ended_plugin_is_not_waited_for() {
    let text = "sh -c 'echo $$ >FOLDER/pid.new; mv FOLDER/pid.new FOLDER/pid; exec sleep 1000' & \
                while ! [ -e FOLDER/pid ]; do :; done; echo done";
    assert_eq!(run_text(text, b"", LONG).unwrap(), b"done\n");
}

#[test]
fn a_failure_says_what_the_plugin_said() {
    let text =
        r#"echo noise >&2; echo '{"cniVersion":"1.0.0","code":11,"msg":"later","details":"busy"}'; exit 1"#;
    let failure = run_text(text, b"", LONG).unwrap_err();
    assert_eq!((failure.code(), failure.to_string().as_str()), (Some(11), "later (code 11): busy"));
    let failure = run_text("echo out; echo err >&2; exit 3", b"", LONG).unwrap_err();
    assert_eq!(failure.to_string(), "exit status: 3: out; err");
    let failure = run_text("head -c 100000 /dev/zero | tr '\\0' x >&2; kill -9 $$", b"", LONG).unwrap_err();
    let said = failure.to_string();
    assert!(said.starts_with("signal: 9 (SIGKILL): …xxx") && said.len() < 2000, "{said}");
    let mut place = Groups.confine("x").unwrap();
    let failure = run(place.as_mut(), Path::new("/nowhere/at/all"), &[], b"", LONG).unwrap_err();
    assert!(failure.to_string().starts_with("start /nowhere/at/all: "), "{failure}");
}

#[test]
fn a_program_that_is_being_written_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugin");
    fs::copy("/bin/true", &path).unwrap();
    let writer = fs::File::options().append(true).open(&path).unwrap();
    let closing = std::thread::spawn(move || {
        std::thread::sleep(BUSY_PAUSE * 3);
        drop(writer);
    });
    let mut place = Groups.confine("x").unwrap();
    run(place.as_mut(), &path, &[], b"", LONG).unwrap().success().unwrap();
    closing.join().unwrap();
}
