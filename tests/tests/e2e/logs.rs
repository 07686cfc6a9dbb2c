//! Container log files: grammar, pieces, order, reopening.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::container_config;
use crisp_tests::node::Node;
use crisp_tests::wait;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "a_log_line_has_time_stream_and_tag", needs: &[], images: &["busybox"], run: grammar },
    Case { name: "a_long_line_comes_in_pieces", needs: &[], images: &["busybox"], run: pieces },
    Case { name: "a_silent_container_has_an_empty_log", needs: &[], images: &["busybox"], run: silent },
    Case { name: "a_reopened_log_goes_on_in_a_new_file", needs: &[], images: &["busybox"], run: reopen },
    Case {
        name: "the_whole_log_is_there_when_the_end_is_told",
        needs: &[],
        images: &["busybox"],
        run: complete,
    },
    Case { name: "what_was_never_made_has_no_log", needs: &[], images: &["busybox"], run: unmade },
    Case { name: "a_log_path_stays_in_its_directory", needs: &[], images: &["busybox"], run: escape },
];

/// One line of a log file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// RFC 3339 with a fraction.
    pub(crate) time: String,
    /// `stdout` or `stderr`.
    pub(crate) stream: String,
    /// `F` or `P`.
    pub(crate) tag: String,
    /// What was said.
    pub(crate) content: String,
}

/// Takes a log file apart.
pub(crate) fn parse(text: &str) -> Result<Vec<Line>> {
    ensure!(text.is_empty() || text.ends_with('\n'), "the last line is not whole: {text:?}");
    text.lines().map(parse_line).collect()
}

fn parse_line(line: &str) -> Result<Line> {
    let parts: Vec<_> = line.splitn(4, ' ').collect();
    let [time, stream, tag, content] = parts[..] else { bail!("not a log line: {line:?}") };
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let rest = shape.strip_prefix("0000-00-00T00:00:00.").with_context(|| format!("time {time:?}"))?;
    let zone = rest.trim_start_matches('0');
    ensure!(rest.len() > zone.len() && matches!(zone, "Z" | "+00:00" | "-00:00"), "time {time:?}");
    ensure!(matches!(stream, "stdout" | "stderr"), "stream {stream:?}");
    ensure!(matches!(tag.split(':').next(), Some("F" | "P")), "tag {tag:?}");
    let owned = str::to_owned;
    Ok(Line { time: owned(time), stream: owned(stream), tag: owned(tag), content: owned(content) })
}

/// The log of a container as it is now.
pub(crate) fn read(node: &Node, id: &str) -> Result<Vec<Line>> {
    let path = node.cri().container(id)?.log_path;
    parse(&fs::read_to_string(&path).with_context(|| format!("read {path}"))?)
}

/// Waits until a log has `count` lines or more.
pub(crate) fn wait_for_lines(node: &Node, id: &str, count: usize) -> Result<Vec<Line>> {
    wait::until("lines in the log", wait::LONG, || match read(node, id) {
        Ok(lines) if lines.len() >= count => Ok(lines),
        Ok(lines) => Err(format!("{lines:?}")),
        Err(error) => Err(format!("{error:#}")),
    })
}

fn grammar(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("grammar")?;
    let line = "echo one; echo two >&2; echo; printf ' two  words \\r\\n'; printf 'no end'; exit 0";
    let id = node.launch(&pod, "c", "busybox", &["sh", "-c", line])?;
    let status = node.wait_for_exit(&id)?;
    let expected = format!("{}/c/0.log", pod.config.log_directory);
    ensure!(status.log_path == expected, "{}", status.log_path);
    let log = read(node, &id)?;
    let of = |stream: &str| -> Vec<_> {
        log.iter().filter(|l| l.stream == stream).map(|l| (l.tag.as_str(), l.content.as_str())).collect()
    };
    ensure!(of("stderr") == [("F", "two")], "{log:?}");
    let out = of("stdout");
    ensure!(
        out.len() == 4 && out[0] == ("F", "one") && out[1] == ("F", "") && out[3] == ("P", "no end"),
        "{log:?}"
    );
    ensure!(out[2].1.trim_end_matches('\r') == " two  words ", "{log:?}");
    let times: Vec<_> = log.iter().map(|l| &l.time).collect();
    ensure!(
        times.is_sorted_by_key(|time| time.trim_end_matches('Z').to_owned()) || times.len() < 2,
        "{times:?}"
    );
    node.end_pod(&pod)
}

fn pieces(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("pieces")?;
    let line = "head -c 40000 /dev/zero | tr '\\0' a; echo end";
    let id = node.launch(&pod, "c", "busybox", &["sh", "-c", line])?;
    node.wait_for_exit(&id)?;
    let log = read(node, &id)?;
    ensure!(log.len() > 1 && log[..log.len() - 1].iter().all(|l| l.tag == "P"), "tags");
    ensure!(log.last().is_some_and(|l| l.tag == "F"), "the last piece ends the line");
    ensure!(log.iter().all(|l| l.content.len() <= 16 << 10), "a piece is too long");
    let whole: String = log.iter().map(|l| l.content.as_str()).collect();
    ensure!(whole.len() == 40_003 && whole.ends_with("aend"), "{} bytes", whole.len());
    node.end_pod(&pod)
}

fn silent(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("silent")?;
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    ensure!(read(node, &id)?.is_empty());

    let mut config = container_config("nowhere", "busybox", &["sh", "-c", "yes | head -n 100000"]);
    config.log_path.clear();
    let id = node.launch_as(&pod, &config)?;
    let status = node.wait_for_exit(&id)?;
    ensure!(status.exit_code == 0 && status.log_path.is_empty(), "{status:?}");
    node.end_pod(&pod)
}

fn reopen(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("reopen")?;
    let line = "n=0; while :; do echo $n; n=$((n+1)); sleep 0.01; done";
    let id = node.launch(&pod, "c", "busybox", &["sh", "-c", line])?;
    wait_for_lines(node, &id, 3)?;
    let path = node.cri().container(&id)?.log_path;
    let mut whole = String::new();
    for round in 0..3 {
        let rotated = format!("{path}.{round}");
        fs::rename(&path, &rotated)?;
        let request = || cri::ReopenContainerLogRequest { container_id: id.clone() };
        node.cri().reopen_container_log(request())?;
        ensure!(fs::exists(&path)?, "no new file when the call returns");
        let old = fs::read_to_string(&rotated)?;
        wait_for_lines(node, &id, 3)?;
        ensure!(fs::read_to_string(&rotated)? == old, "the old file still grows");
        whole.push_str(&old);
        if round == 0 {
            // Also a daemon that was killed in between knows where the log is.
            node.kill_and_restart()?;
        }
    }
    node.cri().stop(&id, 0)?;
    whole.push_str(&fs::read_to_string(&path)?);
    let numbers: Vec<usize> = parse(&whole)?.iter().map(|l| l.content.parse()).collect::<Result<_, _>>()?;
    ensure!(
        numbers.iter().enumerate().all(|(at, number)| at == *number),
        "lines lost or doubled: {numbers:?}"
    );

    fs::remove_file(&path)?;
    let request = cri::ReopenContainerLogRequest { container_id: id.clone() };
    ensure!(
        node.cri().reopen_container_log(request).is_err(),
        "reopened the log of a container that has ended"
    );
    ensure!(!fs::exists(&path)?, "a refused call made a file");
    node.end_pod(&pod)
}

fn complete(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("complete")?;
    let line = "n=0; while [ $n -lt 20000 ]; do echo line $n; n=$((n+1)); done";
    let id = node.launch(&pod, "c", "busybox", &["sh", "-c", line])?;
    node.wait_for_exit(&id)?;
    let log = read(node, &id)?;
    ensure!(log.len() == 20_000 && log[19_999].content == "line 19999", "{} lines", log.len());
    node.end_pod(&pod)
}

/// Kubelet counts attempts by log files where it has nothing else.
fn unmade(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("unmade")?;
    let mut config = container_config("c", "busybox", &["true"]);
    config.log_path = "c/0.log".to_owned();
    // Found out by the child, after everything else was made.
    config.working_dir = "/bin/busybox".to_owned();
    let made = node.cri().create(&pod.id, &config, &pod.config);
    ensure!(made.is_err(), "a program is a working directory");
    let log = std::path::Path::new(&pod.config.log_directory).join("c/0.log");
    ensure!(!log.exists() && node.cri().containers()?.iter().all(|one| one.pod_sandbox_id != pod.id));
    config.working_dir = String::new();
    let id = node.launch_as(&pod, &config)?;
    node.wait_for_exit(&id)?;
    ensure!(log.exists(), "no log");
    node.end_pod(&pod)
}

fn escape(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("escape")?;
    let outside = node.folder().join("outside.log");
    let mut config = container_config("c", "busybox", &["echo", "x"]);
    config.log_path = "../../outside.log".to_owned();
    ensure!(node.cri().launch(&pod.id, &config, &pod.config).is_err(), "a log path with .. was accepted");
    ensure!(!outside.exists() && !node.folder().join("logs/outside.log").exists());

    // A symbolic link put where the log is to be is not followed.
    let mut config = container_config("d", "busybox", &["echo", "x"]);
    config.log_path = "d.log".to_owned();
    std::os::unix::fs::symlink(&outside, std::path::Path::new(&pod.config.log_directory).join("d.log"))?;
    let refused = node.cri().launch(&pod.id, &config, &pod.config);
    ensure!(refused.is_err() && !outside.exists(), "a link was followed: {refused:?}");
    node.end_pod(&pod)
}
