//! `crisp images tree`: what images consist of, and what they share.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use anyhow::Result;
use clap::Args;
use crisp_proto::admin::v1::{ImageLayersRequest, Layer, LayeredImage};

use crate::endpoint::{Asked, Clients};
use crate::text;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Names or ids; all images without
    images: Vec<String>,
}

pub(crate) async fn run(endpoint: &str, arguments: Arguments) -> Result<()> {
    let clients = Clients::connect(endpoint).await?;
    // Sharing counts among all, whichever are shown.
    let all =
        clients.admin.clone().image_layers(ImageLayersRequest::default()).await.asked("list layers")?.images;
    let shown = match arguments.images.is_empty() {
        true => all.clone(),
        false => {
            let request = ImageLayersRequest { images: arguments.images };
            clients.admin.clone().image_layers(request).await.asked("list layers")?.images
        }
    };
    print!("{}", draw(&shown, &all));
    Ok(())
}

/// One tree an image, the layer at the bottom first, and what all of them take.
fn draw(shown: &[LayeredImage], all: &[LayeredImage]) -> String {
    let mut users: HashMap<&str, usize> = HashMap::new();
    for image in all {
        let chains: HashSet<&str> = image.layers.iter().map(|layer| layer.chain_id.as_str()).collect();
        chains.into_iter().for_each(|chain| *users.entry(chain).or_default() += 1);
    }
    let mut text = String::new();
    for image in shown {
        let names = if image.names.is_empty() { "<none>".to_owned() } else { image.names.join(" ") };
        let own: u64 =
            image.layers.iter().filter(|l| users.get(l.chain_id.as_str()) == Some(&1)).map(|l| l.bytes).sum();
        let sum: u64 = image.layers.iter().map(|layer| layer.bytes).sum();
        let sizes = format!("{}, {} of it its own", text::bytes(sum), text::bytes(own));
        let _ = writeln!(text, "{names}  {}  {sizes}", text::short(&image.id));
        text.push_str(&layers(image, &users));
    }
    let mut seen = HashSet::new();
    let every = || shown.iter().flat_map(|image| &image.layers);
    let on_disk: u64 = every().filter(|l| seen.insert(l.chain_id.as_str())).map(|l| l.bytes).sum();
    let apart: u64 = every().map(|layer| layer.bytes).sum();
    let count = seen.len();
    let _ = writeln!(
        text,
        "{} images, {count} layers, {} on disk, {} if nothing were shared",
        shown.len(),
        text::bytes(on_disk),
        text::bytes(apart)
    );
    text
}

fn layers(image: &LayeredImage, users: &HashMap<&str, usize>) -> String {
    let row = |(index, layer): (usize, &Layer)| {
        let branch = if index + 1 == image.layers.len() { "└─" } else { "├─" };
        let shared = match users.get(layer.chain_id.as_str()) {
            Some(count) if *count > 1 => format!("shared by {count} images"),
            _ => String::new(),
        };
        vec![
            format!("{branch} {}", text::short(&layer.diff_id)),
            text::bytes(layer.bytes),
            format!("{} files", layer.inodes),
            shared,
        ]
    };
    text::columns(&image.layers.iter().enumerate().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_layers_are_counted_once() {
        let layer = |name: char, bytes| Layer {
            chain_id: format!("sha256:{}", name.to_string().repeat(64)),
            diff_id: format!("sha256:{}", name.to_string().repeat(64)),
            bytes,
            inodes: 3,
        };
        let image = |id: char, name: &str, layers: &[Layer]| LayeredImage {
            id: format!("sha256:{}", id.to_string().repeat(64)),
            names: vec![name.to_owned()],
            layers: layers.to_vec(),
        };
        let (base, one, two) = (layer('a', 4 << 20), layer('b', 1 << 20), layer('c', 2048));
        let all = [image('1', "x:1", &[base.clone(), one]), image('2', "x:2", &[base, two])];
        assert_eq!(
            draw(&all, &all),
            "x:1  111111111111  5Mi, 1Mi of it its own\n\
             ├─ aaaaaaaaaaaa  4Mi  3 files  shared by 2 images\n\
             └─ bbbbbbbbbbbb  1Mi  3 files\n\
             x:2  222222222222  4Mi, 2Ki of it its own\n\
             ├─ aaaaaaaaaaaa  4Mi  3 files  shared by 2 images\n\
             └─ cccccccccccc  2Ki  3 files\n\
             2 images, 3 layers, 5Mi on disk, 9Mi if nothing were shared\n"
        );
    }
}
