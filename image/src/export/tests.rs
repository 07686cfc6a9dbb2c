//! What goes out comes in again as the same image.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::*;
use crate::fixture::{
    Built, LayerBlob, Tar, gzip_layer, image, layout_tar, plain_layer, require_root, zstd_layer,
};
use crate::import::ImportOptions;

fn built(salt: &str) -> Built {
    let base = Tar::default()
        .dir("d")
        .pax(b'x', &[("mtime", b"1700000000.5"), ("comment", b"kept")])
        .file("d/f", &[7; 3000])
        .symlink("s", "d/f")
        .hardlink("h", "d/f")
        .with(b'0', "suid", b"#!", |h| h.set_mode(0o4755));
    let odd = Tar::default().file(".wh.s", b"").file("empty", b"").file("d/g", &[8; 513]);
    let layers: Vec<LayerBlob> =
        vec![gzip_layer(&base.end()), zstd_layer(&odd.end()), plain_layer(Tar::default().end())];
    image(salt, layers)
}

async fn import(store: &Store, tmp: &Path, bytes: &[u8]) -> Vec<Arc<Image>> {
    let path = tmp.join("in.tar");
    std::fs::write(&path, bytes).unwrap();
    store.import(&path, ImportOptions::default()).await.unwrap()
}

async fn export(store: &Store, tmp: &Path, names: &[&str]) -> Result<Vec<u8>, ExportError> {
    let path = tmp.join("out.tar");
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    store.export(&names, File::create(&path).unwrap()).await?;
    Ok(std::fs::read(path).unwrap())
}

#[tokio::test]
async fn an_image_keeps_its_id_names_and_files() {
    require_root();
    let tmp = tempfile::tempdir().unwrap();
    let (first, second) = (tmp.path().join("first"), tmp.path().join("second"));
    let store = Store::open(&first).unwrap();
    let (one, two) = (built("1"), built("2"));
    let before = import(&store, tmp.path(), &layout_tar(&[("x.io/a:1", &one), ("x.io/b:1", &two)])).await;
    let bytes = export(&store, tmp.path(), &["x.io/a:1", &before[1].id.to_string()]).await.unwrap();
    let other = Store::open(&second).unwrap();
    let after = import(&other, tmp.path(), &bytes).await;
    assert_eq!(
        after.iter().map(|i| i.id).collect::<Vec<_>>(),
        before.iter().map(|i| i.id).collect::<Vec<_>>()
    );
    assert_eq!(
        (&after[0].tags, &after[1].tags),
        (&vec!["x.io/a:1".to_owned()], &vec!["x.io/b:1".to_owned()])
    );
    for (one, two) in before[0].layers.iter().zip(&after[0].layers) {
        assert_eq!((one.chain_id, one.diff_id), (two.chain_id, two.diff_id));
    }
    let suid = after[0].layers[0].directory.join("suid").metadata().unwrap();
    assert_eq!(suid.mode() & 0o7777, 0o4755);
    // Again from the second store: byte for byte the same.
    let again = export(&other, tmp.path(), &["x.io/a:1", "x.io/b:1"]).await.unwrap();
    assert_eq!(Digest::of(&again), Digest::of(&bytes));
}

#[tokio::test]
async fn a_damaged_layer_is_not_exported() {
    require_root();
    let tmp = tempfile::tempdir().unwrap();
    let store = Store::open(&tmp.path().join("root")).unwrap();
    let images = import(&store, tmp.path(), &layout_tar(&[("x.io/a:1", &built("1"))])).await;
    std::fs::write(images[0].layers[0].directory.join("suid"), "!#").unwrap();
    let error = export(&store, tmp.path(), &["x.io/a:1"]).await.unwrap_err();
    let layer = images[0].layers[0].diff_id.to_string();
    assert!(error.to_string().contains(&layer) && error.to_string().contains("damaged"), "{error}");
    assert!(matches!(export(&store, tmp.path(), &["nothing"]).await, Err(ExportError::Store(_))));
}
