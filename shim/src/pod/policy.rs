//! What a request means in which state: pure decisions, apart from how they are carried out.

use super::ContainerOp;
use crate::{
    error::RequestError,
    record::{ContainerPhase, Exit, OomLevel},
};
use crisp_monitor::wire;

/// What to do with a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Do it.
    Go,
    /// It is so already: success.
    Nothing,
    /// It makes no sense now.
    Refuse(RequestError),
}

/// Decides on a container request. `usable`: the sandbox is ready and not being stopped.
#[must_use]
pub fn container(op: &ContainerOp, phase: &ContainerPhase, usable: bool) -> Verdict {
    use ContainerPhase::{Created, Creating, Exited, Running};
    let refuse = |text: &str| Verdict::Refuse(RequestError::precondition(text));
    match (op, phase) {
        (ContainerOp::Start, Created) if usable => Verdict::Go,
        (ContainerOp::Start, Created) => refuse("start: the sandbox is not ready"),
        (ContainerOp::Start, Running { .. }) => refuse("start: the container runs already"),
        (ContainerOp::Start, Exited(_)) => refuse("start: the container has ended; make a new one"),
        (ContainerOp::Start | ContainerOp::Update(_), Creating) => refuse("the container is being made"),
        (ContainerOp::Stop(_), Running { .. }) => Verdict::Go,
        (ContainerOp::Stop(_), _) => Verdict::Nothing,
        (ContainerOp::Update(_), Created | Running { .. }) => Verdict::Go,
        (ContainerOp::Update(_), Exited(_)) => refuse("update: the container has ended"),
        (ContainerOp::Remove, _) => Verdict::Go,
    }
}

/// What an end that the monitor reports means in CRI's words.
#[must_use]
pub fn exit(report: &wire::Exit) -> Exit {
    let level = report.oom.map_or(OomLevel::Unknown, |oom| OomLevel::of(oom.level));
    let killed = format!("a process of the container was killed for memory: {level} was reached");
    let (reason, message) = match (report.started_nanos, report.oom_killed, report.code) {
        (0, _, _) => ("StartError", "the container ended before its program was executed"),
        (_, true, _) => ("OOMKilled", killed.as_str()),
        (_, false, 0) => ("Completed", ""),
        (_, false, _) => ("Error", ""),
    };
    Exit {
        started_nanos: report.started_nanos,
        finished_nanos: report.nanos,
        code: report.code,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

/// The end of a container that nobody saw end.
#[must_use]
pub fn lost(started_nanos: i64, now_nanos: i64) -> Exit {
    Exit {
        started_nanos,
        finished_nanos: now_nanos,
        code: 255,
        reason: "Unknown".to_owned(),
        message: "the container's monitor ended without a record of its exit".to_owned(),
    }
}

/// The end of a container whose program could not be executed.
#[must_use]
pub fn start_error(error: &RequestError, now_nanos: i64) -> Exit {
    Exit {
        started_nanos: 0,
        finished_nanos: now_nanos,
        code: 128,
        reason: "StartError".to_owned(),
        message: error.text.clone(),
    }
}

/// The end of a container that was never started when its sandbox was stopped.
#[must_use]
pub fn never_started(now_nanos: i64) -> Exit {
    Exit {
        started_nanos: 0,
        finished_nanos: now_nanos,
        code: 137,
        reason: "Error".to_owned(),
        message: "the sandbox was stopped before the container was started".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ended() -> ContainerPhase {
        ContainerPhase::Exited(lost(1, 2))
    }

    #[test]
    fn only_a_created_container_can_be_started_and_only_once() {
        assert_eq!(container(&ContainerOp::Start, &ContainerPhase::Created, true), Verdict::Go);
        for (phase, usable) in [
            (ContainerPhase::Created, false),
            (ContainerPhase::Running { started_nanos: 1 }, true),
            (ended(), true),
        ] {
            assert!(
                matches!(container(&ContainerOp::Start, &phase, usable), Verdict::Refuse(_)),
                "{phase:?}"
            );
        }
    }

    #[test]
    fn stopping_what_does_not_run_is_success_and_removing_always_goes() {
        let stop = ContainerOp::Stop(Duration::ZERO);
        for phase in [ContainerPhase::Created, ended()] {
            assert_eq!(container(&stop, &phase, true), Verdict::Nothing);
            assert_eq!(container(&ContainerOp::Remove, &phase, false), Verdict::Go);
        }
    }

    #[test]
    fn reasons_are_cris_words() {
        let end = |code, oom_killed, started_nanos| wire::Exit {
            container: String::new(),
            code,
            nanos: 9,
            oom_killed,
            started_nanos,
            oom: None,
        };
        for (report, reason) in [
            (end(0, false, 1), "Completed"),
            (end(3, false, 1), "Error"),
            (end(137, true, 1), "OOMKilled"),
            (end(1, true, 1), "OOMKilled"),
            (end(128, false, 0), "StartError"),
        ] {
            assert_eq!(exit(&report).reason, reason);
        }
    }
}
