//! `crisp config`: the daemon's configuration as text, and whether a file holds a good one.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use crisp_shim::config::Config;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print a configuration file with every key, described, at its default
    Default,
    /// Check a configuration file
    Check {
        /// The file
        file: PathBuf,
    },
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Default => print!("{}", Config::default_text()),
        Command::Check { file } => {
            Config::load(Some(file))?;
            println!("{}: good", file.display());
        }
    }
    Ok(())
}
