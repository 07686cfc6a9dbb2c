//! Pulls from a registry on loopback, good and bad.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::fixture::registry::{Answer, FakeRegistry};
use crate::fixture::{
    Built, INDEX, LayerBlob, Tar, descriptor, gzip_layer, image, image_for, plain_layer, require_root,
    zstd_layer,
};

mod hostile;
mod resume;

struct Bench {
    tmp: tempfile::TempDir,
    store: Store,
    registry: FakeRegistry,
}

impl Bench {
    async fn new() -> Self {
        require_root();
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(&tmp.path().join("root")).unwrap();
        Self { tmp, store, registry: FakeRegistry::start().await }
    }

    fn name(&self, rest: &str) -> Reference {
        Reference::parse(&format!("{}/{rest}", self.registry.host)).unwrap()
    }

    fn options(&self) -> PullOptions {
        PullOptions { hosts_dir: self.tmp.path().join("certs.d"), ..PullOptions::default() }
    }

    async fn pull(&self, rest: &str) -> PullResult {
        self.store.pull(&self.name(rest), self.options()).await
    }

    fn hosts(&self, domain: &str, text: &str) {
        let dir = self.tmp.path().join("certs.d").join(domain);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), text).unwrap();
    }

    fn entries(&self, what: &str) -> Vec<String> {
        let dir = std::fs::read_dir(self.tmp.path().join("root").join(what)).unwrap();
        dir.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Deletion runs beside; the test's own time limit is the harness's.
    async fn nothing_staged(&self) {
        while !self.entries("staging").is_empty() {
            tokio::task::yield_now().await;
        }
    }

    async fn nothing_left(&self) {
        self.nothing_staged().await;
        assert!(self.store.list().is_empty() && self.entries("images").is_empty());
        assert!(self.entries("blobs").is_empty() && self.entries("downloads").is_empty());
    }
}

/// Bytes that no compression makes smaller, always the same.
fn noise(length: usize) -> Vec<u8> {
    let blocks = (0_u64..).flat_map(|i| Digest::of(&i.to_le_bytes()).as_bytes().to_vec());
    blocks.take(length).collect()
}

fn base() -> Vec<u8> {
    Tar::default().dir("bin").file("bin/run", b"#!").file("etc/gone", b"x").end()
}

fn two_layers() -> Vec<LayerBlob> {
    let top = Tar::default().file("etc/.wh.gone", b"").file("etc/new", &[b'n'; 300_000]).end();
    vec![gzip_layer(&base()), zstd_layer(&top)]
}

fn read(image: &Image, layer: usize, path: &str) -> Vec<u8> {
    std::fs::read(image.layers[layer].directory.join(path)).unwrap()
}

#[tokio::test]
async fn a_tag_is_pulled_and_found_under_every_name() {
    let bench = Bench::new().await;
    let built = image("a", two_layers());
    let digest = bench.registry.serve("team/app", Some("v1"), &built);
    let (report, watch) = watch::channel(PullProgress::default());
    let options = PullOptions { progress: Some(report), ..bench.options() };
    let pulled = bench.store.pull(&bench.name("team/app:v1"), options).await.unwrap();
    assert_eq!(pulled.id, Digest::of(&built.config));
    assert_eq!(pulled.tags, [bench.name("team/app:v1").to_string()]);
    assert_eq!(pulled.repo_digests, [format!("{}/team/app@{digest}", bench.registry.host)]);
    assert_eq!(pulled.config.cmd, ["/bin/run", "a"]);
    let size: usize = built.config.len() + built.layers.iter().map(|l| l.blob.len()).sum::<usize>();
    assert_eq!(pulled.size, size as u64);
    assert_eq!(read(&pulled, 0, "bin/run"), b"#!");
    assert_eq!(read(&pulled, 1, "etc/new").len(), 300_000);
    let name = pulled.tags[0].clone();
    for text in
        [&name, &pulled.repo_digests[0], &pulled.id.to_string(), &pulled.id.hex(), &pulled.id.hex()[..12]]
    {
        assert_eq!(bench.store.get(text).unwrap().unwrap().id, pulled.id, "{text}");
    }
    assert!(bench.store.get("nothing").unwrap().is_none());
    let progress = watch.borrow().clone();
    assert!(progress.layers.iter().all(|l| l.state == LayerState::Done && l.done == l.total), "{progress:?}");
    bench.nothing_staged().await;
    assert!(bench.store.usage().bytes > 300_000 && bench.store.usage().inodes > 5);
}

#[tokio::test]
async fn a_pull_by_digest_has_that_digest_and_no_tag() {
    let bench = Bench::new().await;
    let digest = bench.registry.serve("app", None, &image("d", two_layers()));
    let pulled = bench.pull(&format!("app@{digest}")).await.unwrap();
    assert!(pulled.tags.is_empty());
    assert_eq!(pulled.repo_digests, [format!("{}/app@{digest}", bench.registry.host)]);
    assert!(bench.registry.asked("/manifests/latest").is_empty());
}

#[tokio::test]
async fn a_present_image_is_checked_but_not_downloaded_again() {
    let bench = Bench::new().await;
    let digest = bench.registry.serve("app", Some("1"), &image("p", two_layers()));
    bench.registry.serve("app", Some("2"), &image("p", two_layers()));
    let first = bench.pull("app:1").await.unwrap();
    let blobs = bench.registry.asked("/blobs/").len();
    let second = bench.pull("app:2").await.unwrap();
    assert_eq!((first.id, second.tags.len()), (second.id, 2));
    bench.pull(&format!("app@{digest}")).await.unwrap();
    assert_eq!(bench.registry.asked("/blobs/").len(), blobs);
    let checks = bench.registry.asked(&digest.to_string());
    assert_eq!(checks.last().unwrap().0, "HEAD");
    // The registry forgets it: a pull must say so although the image is here.
    bench.registry.put(&format!("/v2/app/manifests/{digest}"), Answer { status: 403, ..Answer::default() });
    let error = bench.pull(&format!("app@{digest}")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{}", error.chain());
    assert!(bench.store.get(&first.id.to_string()).unwrap().is_some());
}

#[tokio::test]
async fn a_moved_tag_leaves_its_old_image() {
    let bench = Bench::new().await;
    bench.registry.serve("app", Some("x"), &image("old", two_layers()));
    let old = bench.pull("app:x").await.unwrap();
    bench.registry.serve("app", Some("x"), &image("new", two_layers()));
    let new = bench.pull("app:x").await.unwrap();
    let tag = bench.name("app:x").to_string();
    assert_eq!(bench.store.get(&tag).unwrap().unwrap().id, new.id);
    assert!(bench.store.get(&old.id.to_string()).unwrap().unwrap().tags.is_empty());
    let again = Store::open(bench.store.root()).unwrap();
    assert_eq!(again.get(&tag).unwrap().unwrap().id, new.id);
    assert_eq!(again.list().len(), 2);
}

#[tokio::test]
async fn an_index_gives_the_image_for_this_machine() {
    let bench = Bench::new().await;
    let built = image("i", two_layers());
    let other = image_for("s390x", "i", vec![plain_layer(base())]);
    bench.registry.serve("app", None, &built);
    let mut entries = vec![];
    for (manifest, architecture, os) in [
        (&other.manifest, "s390x", "linux"),
        (&other.manifest, "unknown", "unknown"),
        (&built.manifest, Platform::host().architecture.as_str(), "linux"),
    ] {
        let mut entry = descriptor(crate::fixture::MANIFEST, manifest);
        entry["platform"] = json!({"os": os, "architecture": architecture});
        entries.push(entry);
    }
    let index = |list: &[serde_json::Value]| {
        serde_json::to_vec(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": list})).unwrap()
    };
    let bytes = index(&entries);
    let digest = bench.registry.manifest("app", Some("multi"), INDEX, &bytes);
    let pulled = bench.pull("app:multi").await.unwrap();
    assert_eq!(pulled.id, Digest::of(&built.config));
    assert_eq!(
        pulled.repo_digests,
        [format!("{}/app@{digest}", bench.registry.host)],
        "the index is the pin"
    );
    bench.registry.manifest("app", Some("foreign"), INDEX, &index(&entries[..2]));
    let error = bench.pull("app:foreign").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoPlatform);
    assert!(error.to_string().contains("no match for platform in manifest: it has linux/s390x"), "{error}");
}

#[tokio::test]
async fn i09_a_config_for_another_machine_is_refused_with_both_named() {
    let bench = Bench::new().await;
    bench.registry.serve("app", Some("1"), &image_for("s390x", "", vec![plain_layer(base())]));
    let error = bench.pull("app:1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoPlatform);
    let own = Platform::host().architecture;
    assert!(error.to_string().contains("linux/s390x") && error.to_string().contains(&own), "{error}");
    bench.nothing_left().await;
}

#[tokio::test]
async fn i04_wrong_content_is_refused_and_a_retry_can_succeed() {
    let bench = Bench::new().await;
    let built = image("w", two_layers());
    bench.registry.serve("app", Some("1"), &built);
    let layer = format!("/v2/app/blobs/{}", Digest::of(&built.layers[1].blob));
    bench.registry.change(&layer, |a| *a.body.last_mut().unwrap() ^= 1);
    let error = bench.pull("app:1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{}", error.chain());
    assert!(error.chain().contains(&Digest::of(&built.layers[1].blob).to_string()));
    bench.nothing_left().await;
    bench.registry.change(&layer, |a| *a.body.last_mut().unwrap() ^= 1);
    bench.pull("app:1").await.unwrap();
}

#[tokio::test]
async fn i04_swapped_diff_ids_and_a_wrong_config_or_manifest_are_refused() {
    let bench = Bench::new().await;
    let mut layers = two_layers();
    (layers[0].diff_id, layers[1].diff_id) = (layers[1].diff_id, layers[0].diff_id);
    bench.registry.serve("app", Some("swapped"), &image("", layers));
    let error = bench.pull("app:swapped").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DiffIdMismatch, "{}", error.chain());
    let built = image("c", two_layers());
    let digest = bench.registry.serve("app", Some("config"), &built);
    bench.registry.change(&format!("/v2/app/blobs/{}", Digest::of(&built.config)), |a| a.body[0] = b'[');
    let error = bench.pull("app:config").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{}", error.chain());
    bench.registry.change(&format!("/v2/app/manifests/{digest}"), |a| a.body.push(b' '));
    let error = bench.pull(&format!("app@{digest}")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{}", error.chain());
    bench.nothing_left().await;
}

#[tokio::test]
async fn i03_a_body_larger_than_declared_is_cut_off() {
    let bench = Bench::new().await;
    let built = image("s", two_layers());
    bench.registry.serve("app", Some("1"), &built);
    let layer = format!("/v2/app/blobs/{}", Digest::of(&built.layers[0].blob));
    bench.registry.change(&layer, |a| a.body.extend_from_slice(&[0; 64]));
    let error = bench.pull("app:1").await.unwrap_err();
    assert!(error.chain().contains("were declared"), "{}", error.chain());
    bench.nothing_left().await;
}

#[tokio::test]
async fn i05_a_broken_body_is_resumed_where_it_ended() {
    let bench = Bench::new().await;
    let noise = noise(800_000);
    let built = image("r", vec![plain_layer(Tar::default().file("f", &noise).end())]);
    bench.registry.serve("app", Some("1"), &built);
    let layer = format!("/v2/app/blobs/{}", Digest::of(&built.layers[0].blob));
    bench.registry.change(&layer, |a| a.cut = Some(300_000));
    let pulled = bench.pull("app:1").await.unwrap();
    assert_eq!(read(&pulled, 0, "f"), noise);
    assert_eq!(bench.registry.asked("/blobs/").len(), 3, "config, first part, rest");
}

#[tokio::test]
async fn an_image_that_does_not_exist_is_named_with_the_answer() {
    let bench = Bench::new().await;
    let error = bench.pull("no/such:thing").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let text = error.chain();
    for part in ["no/such:thing", "tag \"thing\"", &bench.registry.host, "404"] {
        assert!(text.contains(part), "{part:?} is missing in {text:?}");
    }
    bench.nothing_left().await;
}

#[tokio::test]
async fn a_registry_that_is_down_is_unavailable() {
    let bench = Bench::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap();
    drop(listener);
    let reference = Reference::parse(&format!("{host}/app:1")).unwrap();
    let error = bench.store.pull(&reference, bench.options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RegistryUnavailable);
    assert!(error.chain().to_lowercase().contains("refused"), "{}", error.chain());
}

#[tokio::test]
async fn mirrors_are_tried_in_order_and_all_answers_are_listed() {
    let bench = Bench::new().await;
    let good = FakeRegistry::start().await;
    let host = &bench.registry.host;
    bench.hosts(
        "docker.io",
        &format!(
            "server = \"http://{host}\"\n[host.\"http://{}\"]\n[host.\"http://127.0.0.1:9\"]\n",
            good.host
        ),
    );
    let reference = Reference::parse("busybox:1").unwrap();
    let error = bench.store.pull(&reference, bench.options()).await.unwrap_err();
    let text = error.chain();
    let order =
        [&good.host, "127.0.0.1:9", host].map(|part| text.find(part).unwrap_or_else(|| panic!("{text}")));
    assert!(order.is_sorted(), "{text}");
    assert_eq!(error.kind(), ErrorKind::NotFound, "the upstream's answer counts");
    good.serve("library/busybox", Some("1"), &image("m", two_layers()));
    let pulled = bench.store.pull(&reference, bench.options()).await.unwrap();
    assert_eq!(pulled.tags, ["docker.io/library/busybox:1"]);
    assert!(good.asked("ns=docker.io").len() >= 4, "mirrors are told the registry");
}

#[tokio::test]
async fn a_token_is_fetched_with_the_credentials_and_used() {
    let bench = Bench::new().await;
    let built = image("t", two_layers());
    let digest = bench.registry.serve("app", Some("1"), &built);
    let host = bench.registry.host.clone();
    let token = |t: &str| Answer {
        status: 200,
        body: format!(r#"{{"token":"{t}"}}"#).into_bytes(),
        ..Answer::default()
    };
    bench.registry.put("/token", Answer { wants: Some("Basic dTpw".into()), ..token("sesame") });
    let blobs = built.layers.iter().map(|l| Digest::of(&l.blob)).chain([Digest::of(&built.config)]);
    let mut paths: Vec<String> = blobs.map(|b| format!("/v2/app/blobs/{b}")).collect();
    paths.extend(["/v2/app/manifests/1".to_owned(), format!("/v2/app/manifests/{digest}")]);
    for path in &paths {
        bench.registry.change(path, |a| {
            a.wants = Some("Bearer sesame".into());
            a.challenge =
                format!(r#"Bearer realm="http://{host}/token",service="r",scope="repository:app:pull""#);
        });
    }
    let error = bench.pull("app:1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{}", error.chain());
    let auth = Some(Credentials::basic("u", "p"));
    let reference = bench.name("app:1");
    bench.store.pull(&reference, PullOptions { auth, ..bench.options() }).await.unwrap();
    let asked = bench.registry.asked("/token?");
    assert!(asked.iter().any(|(_, path, _)| path.contains("scope=repository%3Aapp%3Apull")), "{asked:?}");
    assert_eq!(asked.len(), 2, "one token for each of the two pulls");
    // Without credentials the present image is refused as well.
    let error = bench.pull("app:1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
}

#[tokio::test]
async fn i10_a_redirect_does_not_carry_credentials_to_another_host() {
    let bench = Bench::new().await;
    let (built, cdn) = (image("r", two_layers()), FakeRegistry::start().await);
    bench.registry.serve("app", Some("1"), &built);
    for layer in &built.layers {
        let path = cdn.blob("cdn", &layer.blob);
        bench.registry.put(
            &format!("/v2/app/blobs/{}", Digest::of(&layer.blob)),
            Answer {
                status: 307,
                headers: vec![("Location".into(), format!("http://{}{path}", cdn.host))],
                wants: Some("Basic dTpw".into()),
                challenge: "Basic realm=\"r\"".into(),
                ..Answer::default()
            },
        );
    }
    let options = PullOptions { auth: Some(Credentials::basic("u", "p")), ..bench.options() };
    bench.store.pull(&bench.name("app:1"), options).await.unwrap();
    let asked = cdn.asked("/blobs/");
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|(_, _, authorization)| authorization.is_none()), "{asked:?}");
}

#[tokio::test]
async fn i10_redirect_loops_end() {
    let bench = Bench::new().await;
    let location = vec![("Location".to_owned(), "/v2/app/manifests/1".to_owned())];
    bench.registry.put("/v2/app/manifests/1", Answer { status: 302, headers: location, ..Answer::default() });
    let error = bench.pull("app:1").await.unwrap_err();
    assert!(error.chain().contains("more than 5 redirects"), "{}", error.chain());
}

#[tokio::test]
async fn i07_a_document_without_end_is_not_read() {
    let bench = Bench::new().await;
    let big = vec![b' '; 9 << 20];
    let headers = vec![("Content-Type".to_owned(), crate::fixture::MANIFEST.to_owned())];
    bench
        .registry
        .put("/v2/app/manifests/1", Answer { status: 200, headers, body: big, ..Answer::default() });
    let error = bench.pull("app:1").await.unwrap_err();
    assert!(error.chain().contains("larger than 8388608 bytes"), "{}", error.chain());
}

#[tokio::test]
async fn tls_is_verified_against_the_configured_roots() {
    let bench = Bench::new().await;
    let (registry, pem) = FakeRegistry::start_tls().await;
    registry.serve("app", Some("1"), &image("tls", two_layers()));
    let server = format!("server = \"https://{}\"\n", registry.host);
    let reference = Reference::parse(&format!("{}/app:1", registry.host)).unwrap();
    bench.hosts(&registry.host, &server);
    let error = bench.store.pull(&reference, bench.options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RegistryUnavailable);
    assert!(error.chain().contains("certificate"), "{}", error.chain());
    bench.hosts(&registry.host, &format!("{server}ca = \"own.pem\"\n"));
    let error = bench.store.pull(&reference, bench.options()).await.unwrap_err();
    assert!(error.chain().contains("own.pem"), "{}", error.chain());
    std::fs::write(bench.tmp.path().join("certs.d").join(&registry.host).join("own.pem"), pem).unwrap();
    bench.store.pull(&reference, bench.options()).await.unwrap();
    // And without any roots, when the operator says so.
    bench.hosts(&registry.host, &format!("{server}skip_verify = true\n"));
    bench.store.remove(&reference.to_string()).await.unwrap();
    bench.store.pull(&reference, bench.options()).await.unwrap();
}

/// A pull whose second layer never ends.
async fn hanging(bench: &Bench) -> (Built, String) {
    let built = image("h", two_layers());
    bench.registry.serve("app", Some("1"), &built);
    let layer = format!("/v2/app/blobs/{}", Digest::of(&built.layers[1].blob));
    bench.registry.change(&layer, |a| a.hang = Some(10));
    (built, layer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_pull_leaves_nothing_visible() {
    let bench = Bench::new().await;
    let (_, layer) = hanging(&bench).await;
    let (report, mut watch) = watch::channel(PullProgress::default());
    let options = PullOptions { progress: Some(report), ..bench.options() };
    let (store, reference) = (bench.store.clone(), bench.name("app:1"));
    let task = tokio::spawn(async move { store.pull(&reference, options).await });
    let half = |p: &PullProgress| {
        p.layers.len() == 2
            && p.layers[0].state == LayerState::Done
            && p.layers[1].state == LayerState::Downloading
    };
    watch.wait_for(half).await.unwrap();
    assert!(!bench.entries("staging").is_empty());
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    bench.nothing_left().await;
    // What was complete is used by the next try.
    bench.registry.change(&layer, |a| a.hang = None);
    let before = bench.registry.asked("/blobs/").len();
    bench.pull("app:1").await.unwrap();
    assert_eq!(bench.registry.asked("/blobs/").len(), before + 2, "config and the missing layer");
    // And what nobody uses is swept at the next start.
    assert_eq!(bench.entries("layers").len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_goes_silent_is_given_up() {
    let bench = Bench::new().await;
    hanging(&bench).await;
    let options = PullOptions { progress_timeout: Duration::from_millis(50), ..bench.options() };
    let error = bench.store.pull(&bench.name("app:1"), options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RegistryUnavailable, "{}", error.chain());
    assert!(error.chain().contains("no byte for"), "{}", error.chain());
    bench.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_of_the_same_reference_are_joined_and_layers_are_shared() {
    let bench = Bench::new().await;
    let built = image("j", two_layers());
    bench.registry.serve("app", Some("1"), &built);
    bench.registry.serve("copy", Some("1"), &image("k", two_layers()));
    let pulls = (0..8).map(|i| bench.pull(if i % 2 == 0 { "app:1" } else { "copy:1" }));
    let images = futures_util::future::try_join_all(pulls).await.unwrap();
    assert_eq!(images[0].layers, images[1].layers);
    assert_eq!(bench.entries("layers").len(), 2);
    let layer = Digest::of(&built.layers[1].blob).to_string();
    assert_eq!(bench.registry.asked(&layer).len(), 1, "each layer is downloaded once");
    assert_eq!(bench.registry.asked("app/manifests/1").len(), 1, "and each tag resolved once");
}

#[test]
fn a_half_done_pull_of_a_dead_process_is_swept_at_open() {
    let tmp = tempfile::tempdir().unwrap();
    drop(Store::open(tmp.path()).unwrap());
    let make = |path: &str| std::fs::create_dir_all(tmp.path().join(path).join("deep/er")).unwrap();
    make("staging/0");
    make("layers/abcdef");
    std::fs::write(tmp.path().join("blobs/0123"), "x").unwrap();
    std::fs::write(tmp.path().join("images/.new-x"), "x").unwrap();
    let store = Store::open(tmp.path()).unwrap();
    for dir in ["staging", "layers", "blobs", "images"] {
        assert_eq!(std::fs::read_dir(tmp.path().join(dir)).unwrap().count(), 0, "{dir}");
    }
    assert_eq!(store.usage().bytes, 0);
    assert!(Path::new(&store.usage().mountpoint).is_absolute());
}
