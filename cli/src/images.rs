//! `crisp images` and `crisp import`; what else there is about images has files of its own.

mod check;
pub(crate) mod pull;
pub(crate) mod save;
mod tree;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use crisp_proto::{admin::v1::ImportRequest, runtime::v1 as cri};

use crate::{
    endpoint::{Asked, Clients},
    text,
};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    list: ListArguments,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the layers of images, their sizes, and which are shared
    Tree(tree::Arguments),
    /// Compare layers with their digests, and mend those that are damaged
    Check(check::Arguments),
}

pub(crate) async fn run(endpoint: &str, arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        None => list(endpoint, arguments.list).await?,
        Some(Command::Tree(arguments)) => tree::run(endpoint, arguments).await?,
        Some(Command::Check(arguments)) => return check::run(endpoint, arguments).await,
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Args)]
struct ListArguments {
    /// Print whole ids only
    #[arg(short, long)]
    quiet: bool,
}

async fn list(endpoint: &str, arguments: ListArguments) -> Result<()> {
    let clients = Clients::connect(endpoint).await?;
    let request = cri::ListImagesRequest::default();
    let images = clients.image.clone().list_images(request).await.asked("list images")?.images;
    if arguments.quiet {
        for image in images {
            println!("{}", image.id);
        }
        return Ok(());
    }
    print!("{}", text::columns(&rows(&images)));
    Ok(())
}

/// One line for each tag; an image without one is shown by its first digest.
fn rows(images: &[cri::Image]) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for image in images {
        let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
        let id = id.get(..12).unwrap_or(id);
        let names = if image.repo_tags.is_empty() {
            &image.repo_digests[..image.repo_digests.len().min(1)]
        } else {
            &image.repo_tags
        };
        let unnamed = ["<none>".to_owned()];
        for name in if names.is_empty() { &unnamed } else { names } {
            let pinned = if image.pinned { "pinned" } else { "" };
            rows.push(vec![name.clone(), id.to_owned(), text::bytes(image.size), pinned.to_owned()]);
        }
    }
    rows.sort();
    rows.insert(0, ["IMAGE", "ID", "SIZE", ""].map(str::to_owned).to_vec());
    rows
}

#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    /// A docker archive, an OCI archive or the folder of an OCI layout; - for an archive on standard input
    #[arg(value_name = "FILE|DIR|-")]
    path: PathBuf,
}

pub(crate) async fn import(endpoint: &str, arguments: ImportArguments) -> Result<()> {
    if arguments.path == Path::new("-") {
        return import_input(endpoint).await;
    }
    import_path(endpoint, &arguments.path).await
}

/// The daemon reads an archive more than once, so it gets a file.
async fn import_input(endpoint: &str) -> Result<()> {
    let input = std::io::stdin();
    if input.is_terminal() {
        bail!("import: standard input is a terminal");
    }
    let mut file = tempfile::Builder::new().prefix("crisp-import-").suffix(".tar").tempfile()?;
    std::io::copy(&mut input.lock(), &mut file).context("import: read standard input")?;
    import_path(endpoint, file.path()).await
}

async fn import_path(endpoint: &str, path: &Path) -> Result<()> {
    let shown = path.display();
    // The daemon's working directory is another one.
    let path = path.canonicalize().with_context(|| format!("import {shown}"))?;
    let path = path.to_str().with_context(|| format!("import {shown}: the path is not UTF-8"))?.to_owned();
    let clients = Clients::connect(endpoint).await?;
    let request = ImportRequest { path };
    let answer = clients.admin.clone().import(request).await.asked(format_args!("import {shown}"))?;
    for image in answer.images {
        let names = if image.names.is_empty() { "<none>".to_owned() } else { image.names.join(" ") };
        println!("{}  {names}", image.id);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_listed_by_name() {
        let image = |id: &str, tags: &[&str], digests: &[&str]| cri::Image {
            id: format!("sha256:{id}"),
            repo_tags: tags.iter().map(|t| (*t).to_owned()).collect(),
            repo_digests: digests.iter().map(|t| (*t).to_owned()).collect(),
            size: 3 << 20,
            pinned: id.starts_with('f'),
            ..Default::default()
        };
        let images = [
            image("ffffffffffffffff", &["b:1", "a:1"], &["a@sha256:1"]),
            image("0000000000000000", &[], &["c@sha256:2", "d@sha256:2"]),
            image("1111111111111111", &[], &[]),
        ];
        assert_eq!(
            text::columns(&rows(&images)),
            "IMAGE       ID            SIZE\n\
             <none>      111111111111  3Mi\n\
             a:1         ffffffffffff  3Mi   pinned\n\
             b:1         ffffffffffff  3Mi   pinned\n\
             c@sha256:2  000000000000  3Mi\n"
        );
    }
}
