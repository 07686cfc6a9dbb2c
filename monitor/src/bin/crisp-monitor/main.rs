//! `crisp-monitor`: one per pod, the parent of every process of its pod.
//!
//! Started by the daemon inside the pod's network, IPC and UTS namespaces with a listening `SOCK_SEQPACKET`
//! socket as standard input; serves it until it is told to shut down, whatever becomes of the daemon. One
//! thread, one epoll loop ([`pod`]); containers are born by `crisp_runtime::launch`.
//!
//! Called with another word it is the short-lived process that makes a user namespace (`crisp_runtime::userns`), or one
//! that becomes another program in a cgroup of its own (`crisp_monitor::confined`): so that a node needs one program,
//! which is there and small.
//!
//! Must not know: CRI, images, where records live; must not log.

mod attach;
mod cgroup;
mod confined;
mod connection;
mod container;
mod launched;
mod log;
mod oom;
mod pod;
mod process;
mod refusal;
mod stdio;
mod token;

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use crisp_monitor::confined::ENTER;
use crisp_runtime::userns;
use crisp_sys::raw;

/// Started by hand, or wrongly.
const USAGE: u8 = 2;
/// What a shell says of a program that it cannot execute.
const NOT_EXECUTED: u8 = 127;

fn main() -> ExitCode {
    // It is executed through a descriptor, whose number is no name. The kernel refuses none.
    let _ = raw::process::set_name(c"crisp-monitor");
    if std::env::args_os().nth(1).is_some_and(|word| word == userns::HOLD) {
        return match userns::hold(std::io::stdin().as_fd()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == ENTER) {
        let Err(error) = confined::become_program(std::env::args_os().skip(2));
        let _ = writeln!(std::io::stderr(), "crisp-monitor: {error}");
        return ExitCode::from(NOT_EXECUTED);
    }
    let listener = match process::listener() {
        Ok(listener) => listener,
        Err(error) => {
            // Standard error is /dev/null when the daemon started this; a person gets to read it.
            let _ = writeln!(std::io::stderr(), "crisp-monitor: {error} (it is started by `crisp serve`)");
            return ExitCode::from(USAGE);
        }
    };
    let served = process::settle(&listener)
        .and_then(|()| process::raise_open_files())
        .map_err(|_| ())
        .and_then(|open_files| pod::Pod::new(listener, open_files).map_err(|_| ()))
        .and_then(|mut pod| pod.run().map_err(|_| ()));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(()) => ExitCode::FAILURE,
    }
}
