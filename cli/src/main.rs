//! The `crisp` binary: the daemon (`crisp serve`) and the commands of a person at a terminal.
//!
//! The commands are CRI clients like any other: they must not know what the daemon keeps where, and work against any
//! CRI runtime, apart from `import`, `save`, the layers of `images` and the progress of `pull`, which CRI has no calls
//! for.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing is what a command-line program does"
)]

mod attach;
mod config;
mod endpoint;
mod exec;
mod images;
mod inspect;
mod logs;
mod manifest;
mod netns;
mod play;
mod port_forward;
mod ps;
mod rm;
mod serve;
mod stream;
mod target;
mod text;
mod version;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use stream::terminal::unless_asked_to_end;

/// Runs pods: a container runtime for Kubernetes nodes, and the commands to use it without a cluster.
#[derive(Debug, Parser)]
#[command(name = "crisp", version, max_term_width = 100)]
struct Arguments {
    /// Socket of the CRI runtime to talk to [default: $CRISP_ENDPOINT, else $CONTAINER_RUNTIME_ENDPOINT, else
    /// unix:///run/crisp/crisp.sock].
    #[arg(long, global = true, value_name = "unix://PATH")]
    endpoint: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Serve(serve::Arguments),
    /// Show or check the daemon's configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Run the pods of a manifest, without a cluster
    Play(play::Arguments),
    /// List pods and their containers
    Ps(ps::Arguments),
    /// Print a container's log
    Logs(logs::Arguments),
    /// Run a command in a container
    Exec(exec::Arguments),
    /// Take part in what a container reads and writes
    Attach(attach::Arguments),
    /// Lead ports of this machine into a pod
    PortForward(port_forward::Arguments),
    /// Show how a pod is isolated: namespaces, limits, mounts
    Inspect(inspect::Arguments),
    /// List pods' network namespaces, or run a program of this host in one
    #[command(subcommand)]
    Netns(netns::Command),
    /// Stop and remove pods
    Rm(rm::Arguments),
    /// Fetch an image
    Pull(images::pull::Arguments),
    /// List images, show their layers, check them
    Images(images::Arguments),
    /// Write images to an archive that crisp, docker and others can load
    Save(images::save::Arguments),
    /// Take images from a file or folder: a docker archive, an OCI archive or an OCI layout
    Import(images::ImportArguments),
    /// Print versions
    Version,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("crisp: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let command = match arguments.command {
        Command::Serve(command) => return serve::run(command).map(|()| ExitCode::SUCCESS),
        Command::Config(command) => return config::run(&command).map(|()| ExitCode::SUCCESS),
        command => command,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(Box::pin(client(&endpoint::choose(arguments.endpoint), command)));
    // A read of the terminal or of a file that is still under way must not keep the program.
    runtime.shutdown_background();
    code
}

async fn client(endpoint: &str, command: Command) -> Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Serve(_) | Command::Config(_) => Ok(ExitCode::SUCCESS),
        Command::Play(arguments) => Box::pin(play::run(endpoint, arguments)).await,
        Command::Ps(arguments) => ps::run(endpoint, arguments).await.map(done),
        Command::Logs(arguments) => logs::run(endpoint, arguments).await.map(done),
        Command::Exec(arguments) => unless_asked_to_end(Box::pin(exec::run(endpoint, arguments))).await,
        Command::Attach(arguments) => unless_asked_to_end(Box::pin(attach::run(endpoint, arguments))).await,
        Command::PortForward(arguments) => {
            unless_asked_to_end(Box::pin(port_forward::run(endpoint, arguments))).await
        }
        Command::Inspect(arguments) => inspect::run(endpoint, arguments).await.map(done),
        Command::Netns(command) => netns::run(endpoint, command).await,
        Command::Rm(arguments) => rm::run(endpoint, arguments).await.map(done),
        Command::Pull(arguments) => images::pull::run(endpoint, arguments).await.map(done),
        Command::Images(arguments) => images::run(endpoint, arguments).await,
        Command::Save(arguments) => images::save::run(endpoint, arguments).await.map(done),
        Command::Import(arguments) => images::import(endpoint, arguments).await.map(done),
        Command::Version => version::run(endpoint).await.map(done),
    }
}
