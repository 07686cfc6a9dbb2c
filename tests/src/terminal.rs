//! A person at a terminal: a program with a real pseudo-terminal, what is typed, what is seen, the window's size.
//!
//! Must not know: which program it is.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Action, Winsize, tcflow, tcgetattr, tcsetwinsize};

use crate::command;
use crate::wait;

/// See the module.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    /// The end that programs use; held, so that what was said last can be read after the program's end.
    slave: OwnedFd,
    child: Child,
    line: String,
    seen: Arc<Mutex<Vec<u8>>>,
    /// How much of what was seen has been waited for.
    mark: usize,
}

impl Terminal {
    /// Starts a program as the leader of a session with a terminal of this size.
    ///
    /// # Errors
    /// There is no terminal, or no such program.
    pub fn start(program: &Command, columns: u16, rows: u16) -> Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).context("open a pseudo-terminal")?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        let mut child = Command::new("setsid");
        child.args(["--ctty", "--wait"]).arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            child.env(name, value.unwrap_or_default());
        }
        child.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave.try_clone()?);
        resize(&master, columns, rows)?;
        let line = command::describe(program);
        let child = child.spawn().with_context(|| format!("start {line}"))?;
        let master = File::from(master);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut from, into) = (master.try_clone()?, seen.clone());
        // Ends with the last descriptor of the other end.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                into.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
            }
        });
        Ok(Self { master, slave, child, line, seen, mark: 0 })
    }

    /// Types.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn press(&mut self, keys: &[u8]) -> Result<()> {
        self.master.write_all(keys).context("type")
    }

    /// Changes the window's size.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        resize(&self.master, columns, rows)
    }

    /// Ctrl-S as it is meant: what programs write has to wait, whatever they have made of the keys.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn stop_output(&self) -> Result<()> {
        tcflow(&self.slave, Action::OOff).context("stop the output")
    }

    /// Everything that has been seen.
    pub fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Waits until `text` is seen, behind what was waited for before.
    ///
    /// # Errors
    /// It is not.
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        let (seen, mark) = (self.seen.clone(), self.mark);
        let end = wait::until(&format!("{text:?} from {}", self.line), wait::LONG, || {
            let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let new = &seen[mark..];
            match new.windows(text.len()).position(|part| part == text.as_bytes()) {
                Some(at) => Ok(mark + at + text.len()),
                None => Err(String::from_utf8_lossy(new).into_owned()),
            }
        })?;
        self.mark = end;
        Ok(())
    }

    /// The terminal's settings, to be compared.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn settings(&self) -> Result<String> {
        Ok(format!("{:?}", tcgetattr(&self.slave)?))
    }

    /// The pid of the program.
    ///
    /// # Errors
    /// It has ended.
    pub fn pid(&self) -> Result<String> {
        let setsid = self.child.id();
        wait::until("the program to run", wait::LONG, || {
            // One that leads no process group becomes the program itself.
            let name =
                fs::read_to_string(format!("/proc/{setsid}/comm")).map_err(|error| error.to_string())?;
            if name.trim_end() != "setsid" {
                return Ok(setsid.to_string());
            }
            let children = fs::read_to_string(format!("/proc/{setsid}/task/{setsid}/children"));
            let children = children.map_err(|error| error.to_string())?;
            children.split(' ').next().map(str::to_owned).filter(|pid| !pid.is_empty()).ok_or(name)
        })
    }

    /// Waits for the program's end.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let (child, seen) = (&mut self.child, &self.seen);
        wait::until(&format!("the end of {}", self.line), wait::LONG, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => {
                let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                Err(String::from_utf8_lossy(&seen).into_owned())
            }
            Err(error) => Err(error.to_string()),
        })
    }
}

impl Drop for Terminal {
    /// After a failed test the program may still run.
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if let Ok(pid) = self.pid() {
                let _ = command::run(Command::new("kill").args(["-KILL", &pid]));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn resize(terminal: impl std::os::fd::AsFd, columns: u16, rows: u16) -> Result<()> {
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).context("size of the terminal")
}
