//! The daemon of a [`Node`] as a process: started, signalled, killed, started again.
//!
//! Must not know: what the daemon is asked.

use std::fs::File;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use crisp_proto::runtime::v1 as cri;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Node;
use crate::cri::Cri;
use crate::wait;

impl Node {
    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// It ends, or does not answer within [`wait::LONG`]; the error holds what it said.
    pub fn serve(&mut self) -> Result<()> {
        self.launch_daemon(self.serve_command())
    }

    /// [`Node::serve`] with a log of what `filter` says.
    ///
    /// # Errors
    /// It ends, or does not answer within [`wait::LONG`]; the error holds what it said.
    pub fn serve_logging(&mut self, filter: &str) -> Result<()> {
        let mut command = self.serve_command();
        command.args(["--log", filter]);
        self.launch_daemon(command)
    }

    fn launch_daemon(&mut self, mut command: Command) -> Result<()> {
        ensure!(self.daemon.is_none(), "the daemon runs already");
        let log = File::options().create(true).append(true).open(self.daemon_log())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.crisp.display()))?;
        self.adopt(child)
    }

    /// The command line of the daemon.
    pub fn serve_command(&self) -> Command {
        let mut command = Command::new(&self.crisp);
        command.arg("serve").arg("--config").arg(self.config()).arg("--listen").arg(self.endpoint());
        command.arg("--root").arg(&self.root).arg("--state").arg(self.state());
        command
    }

    /// Takes over a daemon that the caller has started from [`Node::serve_command`], and waits until it answers.
    ///
    /// # Errors
    /// It ends, or does not answer within [`wait::LONG`]; the error holds what it said.
    pub fn adopt(&mut self, child: Child) -> Result<()> {
        let child = self.daemon.insert(child);
        let socket = self.folder.path().join("crisp.sock");
        let ready = wait::until("the daemon to answer", wait::LONG, || {
            if let Ok(Some(status)) = child.try_wait() {
                return Ok(Err(status));
            }
            let cri = Cri::new(&socket).map_err(|error| error.to_string())?;
            cri.version(cri::VersionRequest::default()).map_err(|status| status.to_string())?;
            Ok::<_, String>(Ok(cri))
        });
        match ready {
            Ok(Ok(cri)) => self.cri = Some(cri),
            Ok(Err(status)) => {
                self.daemon = None;
                bail!("the daemon ended with {status}:\n{}", self.daemon_said());
            }
            Err(error) => bail!("{error}\n{}", self.daemon_said()),
        }
        Ok(())
    }

    /// Kills the daemon with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait_for_end()?;
        Ok(())
    }

    /// Stops the daemon with SIGTERM and waits for its end.
    ///
    /// # Errors
    /// It does not run, or it ends with another code than 0.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.wait_for_end()?;
        ensure!(status.success(), "the daemon ended with {status} after SIGTERM:\n{}", self.daemon_said());
        Ok(())
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.daemon_pid()?), signal)
            .with_context(|| format!("send {signal} to the daemon"))
    }

    /// Waits until the daemon has ended.
    ///
    /// # Errors
    /// It does not within [`wait::LONG`].
    pub fn wait_for_end(&mut self) -> Result<std::process::ExitStatus> {
        let child = self.daemon.as_mut().context("the daemon does not run")?;
        let status = wait::until("the daemon to end", wait::LONG, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("still running".to_owned()),
            Err(error) => Err(error.to_string()),
        })?;
        self.daemon = None;
        self.cri = None;
        Ok(status)
    }

    /// Kills the daemon with SIGKILL and starts it again.
    ///
    /// # Errors
    /// As of [`Node::kill`] and [`Node::serve`].
    pub fn kill_and_restart(&mut self) -> Result<()> {
        self.kill()?;
        self.serve()
    }

    /// The pid of the daemon.
    ///
    /// # Errors
    /// It does not run.
    pub fn daemon_pid(&self) -> Result<i32> {
        Ok(i32::try_from(self.daemon.as_ref().context("the daemon does not run")?.id())?)
    }
}
