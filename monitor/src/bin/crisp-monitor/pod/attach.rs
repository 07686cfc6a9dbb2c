//! Attached clients: what a container writes is copied to them.
//!
//! The container never waits for a client: what one does not take at once waits for it, up to [`BEHIND_MAX`]. One that
//! falls further behind is cut off, and so is one that does not take the rest of an ended container for [`STUCK_LIMIT`].
//! What a client has written before it went is the container's: it is passed on when there is nobody to copy to any more.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crisp_monitor::wire::{Attach, AttachEnd, AttachEnded, Body, Failure, FailureKind, Resize};
use crisp_sys::poll::{Event, Interest};
use crisp_sys::{fd, terminal};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::request::{Answer, Served, wrong_phase};
use super::start::check_name;
use super::{Pod, sys_failure};
use crate::attach::{Attachment, Flow, Outlet};
use crate::container::{Container, Phase};
use crate::log::Stream;
use crate::refusal::refuse;
use crate::token::{Kind, Token};

/// Attached clients of a pod.
const CLIENTS_MAX: usize = 64;
/// How much may wait for a client, bytes of each of its streams.
const BEHIND_MAX: usize = 1 << 20;
/// How long a client may leave the rest of an ended container unread.
const STUCK_LIMIT: Duration = Duration::from_secs(20);
/// The same when the pod is to end, and waits for it.
const STUCK_LIMIT_AT_END: Duration = Duration::from_secs(5);

impl Pod {
    pub(super) fn attach(&mut self, call: Attach, fds: Vec<OwnedFd>) -> Served {
        self.refuse_when_ending()?;
        check_name("attach", &call.attach)?;
        if self.attachments.values().any(|one| one.name == call.attach) {
            return Err(refuse(FailureKind::Exists, format!("attach {}: attached already", call.attach)));
        }
        if self.attachments.len() >= CLIENTS_MAX && !self.make_room_for_a_client() {
            let text = format!("attach: the pod has {CLIENTS_MAX} attached clients already");
            return Err(refuse(FailureKind::Precondition, text));
        }
        let serial = self.find(&call.container)?;
        if let Some(container) = self.containers.get(&serial) {
            check(&call, container)?;
        }
        let attachment = attachment(serial, &call, fds)?;
        let client = self.serial();
        let watched = self.watch_client(client, &attachment);
        self.attachments.insert(client, attachment);
        if let Err(failure) = watched {
            self.forget_client(client);
            return Err(failure);
        }
        Ok(Answer::done())
    }

    fn watch_client(&self, serial: u64, one: &Attachment) -> Result<(), Failure> {
        let failed = |error| sys_failure("attach: watch a descriptor", &error);
        // While the container does not take what another client has written, this one waits, too.
        if let Some(stdin) = one.stdin.as_ref().filter(|_| !self.input_waits(one.container)) {
            self.watch(stdin.as_fd(), Kind::AttachStdin, serial).map_err(failed)?;
        }
        for (outlet, kind) in [(&one.stdout, Kind::AttachStdout), (&one.stderr, Kind::AttachStderr)] {
            // Nothing but the end is of interest before something waits.
            let token = Token::new(kind, serial).pack();
            outlet
                .iter()
                .try_for_each(|outlet| self.poll.add(outlet, token, Interest::Nothing))
                .map_err(failed)?;
        }
        Ok(())
    }

    pub(super) fn resize(&mut self, call: &Resize) -> Served {
        let id = &call.container;
        let serial = self.find(id)?;
        let (Ok(columns @ 1..), Ok(rows @ 1..)) = (u16::try_from(call.columns), u16::try_from(call.rows))
        else {
            let text = format!("resize container {id}: {} x {} is no size", call.columns, call.rows);
            return Err(refuse(FailureKind::Invalid, text));
        };
        let Some(container) = self.containers.get_mut(&serial) else { return Ok(None) };
        let Some(life) = &mut container.life else {
            return Err(wrong_phase(id, &container.phase, "resize"));
        };
        match (life.terminal, &life.pipes.stdout) {
            (false, _) => Err(refuse(FailureKind::Precondition, format!("container {id} has no terminal"))),
            (true, None) => Err(wrong_phase(id, &container.phase, "resize")),
            (true, Some(master)) => {
                terminal::resize(master, columns, rows).map_err(|error| sys_failure("resize", &error))?;
                Ok(Answer::done())
            }
        }
    }

    /// Copies what was read from a container to everybody who wants it.
    pub(super) fn copy_to_clients(&mut self, container: u64, stream: Stream, length: usize) {
        let (mut gone, mut slow) = (Vec::new(), Vec::new());
        for (serial, one) in self.attachments.iter_mut().filter(|(_, one)| one.container == container) {
            let Some(outlet) = one.outlet(stream) else { continue };
            let waited = outlet.is_waiting();
            match outlet.push(&self.buffer[..length]) {
                Flow::Clear => {}
                Flow::Waiting if outlet.behind() > BEHIND_MAX => slow.push(*serial),
                Flow::Waiting if waited => {}
                Flow::Waiting => {
                    let token = Token::new(kind(stream), *serial).pack();
                    // Should it not be possible to wait for room, the limit of what waits remains.
                    let _ = self.poll.modify(&*outlet, token, Interest::Write);
                }
                Flow::Gone => gone.push(*serial),
            }
        }
        for serial in gone {
            self.close_outlet(serial, stream);
        }
        for serial in slow {
            self.end_client(serial, AttachEnd::Slow);
        }
    }

    pub(super) fn on_client_room(&mut self, serial: u64, stream: Stream, event: &Event) {
        let Some(one) = self.attachments.get_mut(&serial) else { return };
        let Some(outlet) = one.outlet(stream) else { return };
        if event.hangup {
            return self.close_outlet(serial, stream);
        }
        match outlet.flush() {
            Flow::Waiting => return,
            Flow::Gone => return self.close_outlet(serial, stream),
            Flow::Clear => {
                let _ =
                    self.poll.modify(&*outlet, Token::new(kind(stream), serial).pack(), Interest::Nothing);
            }
        }
        if one.over {
            self.end_client_if_done(serial);
        }
    }

    fn close_outlet(&mut self, serial: u64, stream: Stream) {
        let Some(one) = self.attachments.get_mut(&serial) else { return };
        let Some(outlet) = one.outlet(stream).take() else { return };
        let _ = self.poll.remove(&outlet);
        if one.outlets().next().is_some() {
            return;
        }
        match (one.over, &one.stdin) {
            (true, _) => self.end_client(serial, AttachEnd::Container),
            (false, None) => self.end_client(serial, AttachEnd::Client),
            // Its end comes with that of what it has written, which may wait for the container still.
            (false, Some(_)) => {}
        }
    }

    /// Forgets the oldest client that has gone and only waits for its container to take what it has written.
    fn make_room_for_a_client(&mut self) -> bool {
        let left = |one: &Attachment| {
            one.outlets().next().is_none() && one.stdin.as_ref().is_some_and(has_no_writer)
        };
        let found = self.attachments.iter().find(|(_, one)| left(one)).map(|(serial, _)| *serial);
        found.inspect(|serial| self.end_client(*serial, AttachEnd::Client)).is_some()
    }

    /// The container has written its last: who got it all is done.
    pub(super) fn end_clients_of(&mut self, container: u64) {
        let clients: Vec<u64> = self
            .attachments
            .iter()
            .filter(|(_, one)| one.container == container)
            .map(|(serial, _)| *serial)
            .collect();
        for serial in clients {
            let Some(one) = self.attachments.get_mut(&serial) else { continue };
            one.over = true;
            one.outlets_mut().for_each(Outlet::restart_clock);
            if let Some(stdin) = one.stdin.take() {
                let _ = self.poll.remove(&stdin);
            }
            self.end_client_if_done(serial);
        }
    }

    fn end_client_if_done(&mut self, serial: u64) {
        if self.attachments.get(&serial).is_some_and(|one| one.over && !one.is_waiting()) {
            self.end_client(serial, AttachEnd::Container);
        }
    }

    pub(super) fn end_client(&mut self, serial: u64, end: AttachEnd) {
        let Some(one) = self.forget_client(serial) else { return };
        if one.writes {
            self.client_wrote_its_last(one.container);
        }
        self.announce(Body::AttachEnded(AttachEnded { attach: one.name, end: end as i32 }));
    }

    fn forget_client(&mut self, serial: u64) -> Option<Attachment> {
        let one = self.attachments.remove(&serial)?;
        for outlet in one.outlets() {
            let _ = self.poll.remove(outlet);
        }
        let _ = one.stdin.as_ref().map(|stdin| self.poll.remove(stdin));
        Some(one)
    }

    /// When the first client that does not take the rest will be cut off.
    pub(super) fn first_stuck(&self) -> Option<Instant> {
        let outlets = self.attachments.values().filter(|one| one.over).flat_map(Attachment::outlets);
        outlets.filter_map(Outlet::stuck_since).min().map(|since| since + self.stuck_limit())
    }

    fn stuck_limit(&self) -> Duration {
        if self.ending.is_some() { STUCK_LIMIT_AT_END } else { STUCK_LIMIT }
    }

    pub(super) fn cut_off_stuck_clients(&mut self) {
        let (now, limit) = (Instant::now(), self.stuck_limit());
        let stuck = |one: &Attachment| {
            one.over && one.outlets().filter_map(Outlet::stuck_since).any(|since| since + limit <= now)
        };
        let clients: Vec<u64> =
            self.attachments.iter().filter(|(_, one)| stuck(one)).map(|(serial, _)| *serial).collect();
        for serial in clients {
            self.end_client(serial, AttachEnd::Stuck);
        }
    }
}

fn kind(stream: Stream) -> Kind {
    match stream {
        Stream::Stdout => Kind::AttachStdout,
        Stream::Stderr => Kind::AttachStderr,
    }
}

/// Whether nobody can write to a pipe any more; something may be in it still.
fn has_no_writer(pipe: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
    let told = poll(&mut asked, PollTimeout::ZERO).is_ok();
    told && asked[0].revents().is_some_and(|told| told.contains(PollFlags::POLLHUP))
}

fn check(call: &Attach, container: &Container) -> Result<(), Failure> {
    let id = &call.container;
    let (Phase::Running, Some(life)) = (&container.phase, &container.life) else {
        return Err(wrong_phase(id, &container.phase, "attach"));
    };
    if !(call.stdin || call.stdout || call.stderr) {
        return Err(refuse(FailureKind::Invalid, "attach: none of the streams is asked for"));
    }
    if call.stderr && life.terminal {
        let text = format!("attach: container {id} has a terminal, which has no standard error of its own");
        return Err(refuse(FailureKind::Invalid, text));
    }
    if call.stdin && !life.input.wanted {
        let text = format!("attach: container {id} was made without standard input");
        return Err(refuse(FailureKind::Precondition, text));
    }
    Ok(())
}

fn attachment(container: u64, call: &Attach, fds: Vec<OwnedFd>) -> Result<Attachment, Failure> {
    let wanted = [call.stdin, call.stdout, call.stderr];
    let (came, count) = (fds.len(), wanted.into_iter().filter(|wanted| *wanted).count());
    if came != count {
        let text = format!("attach: {came} descriptors came along, not {count}");
        return Err(refuse(FailureKind::Invalid, text));
    }
    for one in &fds {
        fd::set_nonblocking(one, true).map_err(|error| sys_failure("attach", &error))?;
    }
    let mut fds = fds.into_iter();
    let [stdin, stdout, stderr] = wanted.map(|wanted| if wanted { fds.next() } else { None });
    Ok(Attachment {
        name: call.attach.clone(),
        container,
        writes: call.stdin,
        stdin,
        stdout: stdout.map(Outlet::new),
        stderr: stderr.map(Outlet::new),
        over: false,
    })
}
