//! `crisp images` and `crisp import`; `crisp pull` is in its own file.

pub(crate) mod pull;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use crisp_proto::{admin::v1::ImportRequest, runtime::v1 as cri};

use crate::{
    endpoint::{Asked, Clients},
    text,
};

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Print whole ids only
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) async fn list(endpoint: &str, arguments: ListArguments) -> Result<()> {
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
    /// A docker archive, an OCI archive or the folder of an OCI layout
    #[arg(value_name = "FILE|DIR")]
    path: PathBuf,
}

pub(crate) async fn import(endpoint: &str, arguments: ImportArguments) -> Result<()> {
    let shown = arguments.path.display();
    // The daemon's working directory is another one.
    let path = arguments.path.canonicalize().with_context(|| format!("import {shown}"))?;
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
