//! What attached clients write, on its way into a container's standard input.
//!
//! At most one read of one client waits here: until the container has taken it, no client is read from.

use std::os::fd::AsFd;

use crisp_monitor::wire::AttachEnd;
use crisp_sys::poll::{Event, Interest};
use nix::errno::Errno;
use nix::unistd::read;

use super::Pod;
use crate::attach::Flow;
use crate::token::{Kind, Token};

/// Bytes of a client's input taken at once: as much as goes into a pipe whole or not at all (pipe(7), `PIPE_BUF`).
const INPUT_BYTES: usize = 4096;

impl Pod {
    pub(super) fn on_client_input(&mut self, serial: u64) {
        let Some(one) = self.attachments.get(&serial) else { return };
        let Some(stdin) = &one.stdin else { return };
        let container = one.container;
        match read(stdin.as_fd(), &mut self.buffer[..INPUT_BYTES]) {
            Ok(0) => self.close_client_input(serial),
            Ok(length) => self.feed(container, length),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.close_client_input(serial),
        }
    }

    /// Hands the first `length` bytes of the buffer to the container.
    fn feed(&mut self, container: u64, length: usize) {
        let Some(life) = self.containers.get_mut(&container).and_then(|one| one.life.as_mut()) else {
            return;
        };
        // One that has closed its input hears no more; neither do programs at a shell.
        let Some(outlet) = &mut life.pipes.stdin else { return };
        match outlet.push(&self.buffer[..length]) {
            Flow::Clear => {}
            Flow::Waiting => {
                let _ = self.poll.add(&*outlet, Token::new(Kind::Stdin, container).pack(), Interest::Write);
                self.watch_inputs_of(container, Interest::Nothing);
            }
            Flow::Gone => self.close_input(container),
        }
    }

    /// The container has taken something, or its input is gone.
    pub(super) fn on_container_input(&mut self, container: u64, event: &Event) {
        let Some(life) = self.containers.get_mut(&container).and_then(|one| one.life.as_mut()) else {
            return;
        };
        let Some(outlet) = &mut life.pipes.stdin else { return };
        let flow = if event.hangup { Flow::Gone } else { outlet.flush() };
        if flow == Flow::Waiting {
            return;
        }
        let _ = self.poll.remove(&*outlet);
        if flow == Flow::Gone || life.input.ending {
            self.close_input(container);
        }
        self.watch_inputs_of(container, Interest::Read);
    }

    pub(super) fn input_waits(&self, container: u64) -> bool {
        let life = self.containers.get(&container).and_then(|one| one.life.as_ref());
        life.and_then(|life| life.pipes.stdin.as_ref()).is_some_and(|outlet| outlet.is_waiting())
    }

    fn watch_inputs_of(&self, container: u64, interest: Interest) {
        for (serial, one) in self.attachments.iter().filter(|(_, one)| one.container == container) {
            let Some(stdin) = &one.stdin else { continue };
            // Not registered at all while nothing is wanted: the end of a pipe is always told, again and again.
            let _ = match interest {
                Interest::Nothing => self.poll.remove(stdin),
                wanted => self.poll.add(stdin, Token::new(Kind::AttachStdin, *serial).pack(), wanted),
            };
        }
    }

    /// A client has written its last; one that wants nothing else is done.
    fn close_client_input(&mut self, serial: u64) {
        let Some(one) = self.attachments.get_mut(&serial) else { return };
        if let Some(stdin) = one.stdin.take() {
            let _ = self.poll.remove(&stdin);
        }
        if one.outlets().next().is_none() {
            return self.end_client(serial, AttachEnd::Client);
        }
        let container = one.container;
        self.client_wrote_its_last(container);
    }

    /// CRI `stdin_once`: the first client's end of input is the container's.
    pub(super) fn client_wrote_its_last(&mut self, container: u64) {
        let Some(life) = self.containers.get_mut(&container).and_then(|one| one.life.as_mut()) else {
            return;
        };
        if !life.input.once || life.terminal {
            return;
        }
        life.input.ending = true;
        if !life.pipes.stdin.as_ref().is_some_and(|outlet| outlet.is_waiting()) {
            self.close_input(container);
        }
    }

    pub(super) fn close_input(&mut self, container: u64) {
        let Some(life) = self.containers.get_mut(&container).and_then(|one| one.life.as_mut()) else {
            return;
        };
        if let Some(outlet) = life.pipes.stdin.take() {
            // It is registered only while something waits.
            let _ = self.poll.remove(&outlet);
        }
    }
}
