//! `crisp serve`: the daemon as a program. Reads the configuration, sends logs to standard error, ends on SIGTERM and
//! SIGINT and on no other signal that can be helped. Pods belong to their monitors, so they stay when the daemon ends.

use std::{io::IsTerminal, path::PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use crisp_shim::config::Config;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Configuration file [default: /etc/crisp/config.toml, which need not exist]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen
    #[arg(long, value_name = "unix://PATH")]
    listen: Option<String>,
    /// Directory for images and layers
    #[arg(long, value_name = "DIR")]
    root: Option<String>,
    /// Directory for what ends with the kernel
    #[arg(long, value_name = "DIR")]
    state: Option<String>,
    /// What to log: error, warn, info, debug, trace, or target=level pairs
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let config = configuration(arguments)?;
    let filter =
        EnvFilter::try_new(&config.log).with_context(|| format!("log: {:?} is no filter", config.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(Box::pin(async {
        let shutdown = ended()?;
        crisp_shim::serve(config, shutdown).await?;
        Ok(())
    }))
}

/// The file, with what was given on the command line over it.
fn configuration(arguments: Arguments) -> Result<Config> {
    let mut config = Config::load(arguments.config.as_deref())?;
    let overrides = [
        (&mut config.listen, arguments.listen),
        (&mut config.root, arguments.root),
        (&mut config.state, arguments.state),
        (&mut config.log, arguments.log),
    ];
    for (key, given) in overrides {
        if let Some(value) = given {
            *key = value;
        }
    }
    config.validate()?;
    Ok(config)
}

/// Completes on the first SIGTERM or SIGINT. The handlers are in place when this returns.
fn ended() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    // A daemon in the foreground of a terminal outlives the terminal, as its pods do. The other two have other daemons
    // say something or read their configuration; who takes this one for such a one must not end it.
    let mut hang_up = signal(SignalKind::hangup()).context("handle SIGHUP")?;
    let mut user1 = signal(SignalKind::user_defined1()).context("handle SIGUSR1")?;
    let mut user2 = signal(SignalKind::user_defined2()).context("handle SIGUSR2")?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = hang_up.recv() => {}
                _ = user1.recv() => {}
                _ = user2.recv() => {}
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_are_checked_like_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "root = \"/from/file\"\nlog = \"warn\"\n").unwrap();
        let arguments = |listen: Option<&str>| Arguments {
            config: Some(file.path().to_owned()),
            listen: listen.map(Into::into),
            root: None,
            state: Some("/from/flag".into()),
            log: None,
        };
        let config = configuration(arguments(None)).unwrap();
        assert_eq!(
            (config.root.as_str(), config.state.as_str(), config.log.as_str()),
            ("/from/file", "/from/flag", "warn")
        );
        assert!(configuration(arguments(Some("tcp://x"))).unwrap_err().to_string().contains("tcp://x"));
    }
}
