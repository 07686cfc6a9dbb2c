//! `crisp save`: images as one archive, in a file or on standard output.

use std::fs::Permissions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use crisp_proto::admin::v1::SaveRequest;

use crate::endpoint::{Asked, Clients};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Names or ids of images
    #[arg(required = true)]
    images: Vec<String>,
    /// File to write to; without it the archive goes to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) async fn run(endpoint: &str, arguments: Arguments) -> Result<()> {
    if arguments.output.is_none() && io::stdout().is_terminal() {
        bail!("save: standard output is a terminal: name a file with -o, or use a pipe");
    }
    let clients = Clients::connect(endpoint).await?;
    let what = || format!("save {}", arguments.images.join(" "));
    let request = SaveRequest { images: arguments.images.clone() };
    let mut stream = clients.admin.clone().save(request).await.asked(what())?;
    match &arguments.output {
        None => {
            let mut out = io::stdout().lock();
            while let Some(piece) = stream.message().await.map(tonic::Response::new).asked(what())? {
                out.write_all(&piece.data).context("save: write to standard output")?;
            }
            out.flush().context("save: write to standard output")
        }
        Some(path) => {
            let at = || format!("save: write {}", path.display());
            // A file that is there is replaced by a whole one or not at all.
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new("."));
            let mut file =
                tempfile::Builder::new().prefix(".crisp-save-").tempfile_in(folder).with_context(at)?;
            while let Some(piece) = stream.message().await.map(tonic::Response::new).asked(what())? {
                file.write_all(&piece.data).with_context(at)?;
            }
            file.as_file().set_permissions(Permissions::from_mode(0o644)).with_context(at)?;
            file.persist(path).map(drop).with_context(at)
        }
    }
}
