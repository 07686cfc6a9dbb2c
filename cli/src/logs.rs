//! `crisp logs`: reads the log file of a container where CRI says it is.

pub(crate) mod follow;
pub(crate) mod line;

use std::{
    io::{Write, stdout},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use jiff::{SignedDuration, Timestamp};

use crate::{endpoint::Clients, target};
use line::Entry;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Pod: name, namespace/name or the beginning of its id
    pod: String,
    /// Container of the pod; may be left out when there is one
    #[arg(value_name = "CONTAINER", conflicts_with = "container")]
    name: Option<String>,
    /// Container of the pod
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Go on printing until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Of the run before this one
    #[arg(short, long, conflicts_with = "follow")]
    previous: bool,
    /// Only the last lines
    #[arg(long, value_name = "COUNT")]
    tail: Option<usize>,
    /// Only lines since a time (2026-01-31T10:00:00Z) or for a span (90s, 5m, 2h)
    #[arg(long, value_name = "TIME|SPAN", value_parser = since)]
    since: Option<Timestamp>,
    /// Print each line's time
    #[arg(short, long)]
    timestamps: bool,
}

pub(crate) async fn run(endpoint: &str, arguments: Arguments) -> Result<()> {
    let clients = Clients::connect(endpoint).await?;
    let pod = target::pod(&clients, &arguments.pod).await?;
    let all = target::containers(&clients, &pod.id).await?;
    let wanted = arguments.container.as_deref().or(arguments.name.as_deref());
    let back = usize::from(arguments.previous);
    let container = target::choose_container(&arguments.pod, &all, wanted, back)?;
    let (status, _) = target::status(&clients, &container.id, false).await?;
    let path = log_path(&status)?;
    let filter = Filter { since: arguments.since, timestamps: arguments.timestamps };
    if arguments.follow {
        let mut file =
            follow::Follower::open(&path).with_context(|| format!("read the log {}", path.display()))?;
        let backlog = file.read().with_context(|| format!("read the log {}", path.display()))?;
        print(tail(&backlog, arguments.tail), &filter)?;
        return follow::to_the_end(&clients, &container.id, file, |lines| print(lines, &filter)).await;
    }
    let text = std::fs::read(&path).with_context(|| format!("read the log {}", path.display()))?;
    print(tail(&text, arguments.tail), &filter)
}

/// Where a container's log is.
pub(crate) fn log_path(status: &crisp_proto::runtime::v1::ContainerStatus) -> Result<PathBuf> {
    if status.log_path.is_empty() {
        let name = status.metadata.as_ref().map_or("", |m| m.name.as_str());
        bail!("container {name} keeps no log: it was made without a log path");
    }
    Ok(Path::new(&status.log_path).to_owned())
}

/// What is printed, and how.
#[derive(Debug, Default)]
struct Filter {
    since: Option<Timestamp>,
    timestamps: bool,
}

fn print(text: &[u8], filter: &Filter) -> Result<()> {
    let mut out = Vec::new();
    for entry in line::entries(text) {
        write_entry(&entry?, filter, &mut out);
    }
    stdout().write_all(&out)?;
    stdout().flush()?;
    Ok(())
}

/// Both streams of the container become one, in the order in which they were written, as kubectl has it.
fn write_entry(entry: &Entry<'_>, filter: &Filter, out: &mut Vec<u8>) {
    if let (Some(since), Ok(time)) = (filter.since, entry.time.parse::<Timestamp>())
        && time < since
    {
        return;
    }
    if filter.timestamps {
        out.extend_from_slice(entry.time.as_bytes());
        out.push(b' ');
    }
    out.extend_from_slice(entry.content);
    if !entry.partial {
        out.push(b'\n');
    }
}

/// The end of a log with the last `count` lines, or all of it. Pieces of a line count as part of it.
fn tail(text: &[u8], count: Option<usize>) -> &[u8] {
    let Some(count) = count else { return text };
    let mut starts = vec![];
    let mut offset = 0;
    let mut fresh = true;
    for raw in text.split_inclusive(|byte| *byte == b'\n') {
        if fresh {
            starts.push(offset);
        }
        offset += raw.len();
        fresh = line::parse(raw).map_or(true, |entry| !entry.partial);
    }
    match starts.len().checked_sub(count) {
        Some(index) => starts.get(index).map_or(&[], |start| &text[*start..]),
        None => text,
    }
}

fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let span: SignedDuration =
        text.parse().map_err(|_| format!("{text:?} is neither a time nor a span such as 5m"))?;
    let span = Duration::try_from(span).map_err(|_| format!("{text:?} is negative"))?;
    (Timestamp::now() - span).checked_add(SignedDuration::ZERO).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[u8] = b"2026-08-22T10:00:00.5Z stdout F one\n\
        2026-08-22T10:00:01Z stdout P tw\n2026-08-22T10:00:01Z stdout F o\n\
        2026-08-22T10:00:02Z stderr F bad\n2026-08-22T10:00:03Z stdout P rest\n";

    fn printed(text: &[u8], filter: &Filter) -> String {
        let mut out = Vec::new();
        for entry in line::entries(text) {
            write_entry(&entry.unwrap(), filter, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn pieces_are_joined_and_an_unfinished_line_stays_so() {
        assert_eq!(printed(LOG, &Filter::default()), "one\ntwo\nbad\nrest");
    }

    #[test]
    fn since_leaves_out_what_is_older() {
        let filter = Filter { since: Some("2026-08-22T12:00:02+02:00".parse().unwrap()), timestamps: false };
        assert_eq!(printed(LOG, &filter), "bad\nrest");
        let filter = Filter { since: None, timestamps: true };
        assert!(printed(LOG, &filter).starts_with("2026-08-22T10:00:00.5Z one\n"));
    }

    #[test]
    fn tail_counts_lines_and_not_pieces() {
        assert_eq!(printed(tail(LOG, Some(3)), &Filter::default()), "two\nbad\nrest");
        assert_eq!(tail(LOG, Some(0)), b"");
        assert_eq!(tail(LOG, Some(99)), LOG);
        assert_eq!(tail(b"", Some(1)), b"");
    }

    #[test]
    fn times_and_spans_are_told_apart() {
        assert_eq!(since("2026-08-22T10:00:00Z").unwrap().to_string(), "2026-08-22T10:00:00Z");
        assert!(since("5m").unwrap() < Timestamp::now());
        assert!(since("-5m").is_err() && since("soon").is_err());
    }
}
