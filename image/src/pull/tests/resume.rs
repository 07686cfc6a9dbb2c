//! Pulls that are cut off, and what the next one makes of what was there.

use super::*;
use crate::store::StoreOptions;

/// Large enough to be kept.
const BIG: usize = 3 << 20;

fn big_image() -> Built {
    image("big", vec![gzip_layer(&base()), plain_layer(Tar::default().file("f", &noise(BIG)).end())])
}

fn blob_path(built: &Built, layer: usize) -> String {
    format!("/v2/app/blobs/{}", Digest::of(&built.layers[layer].blob))
}

impl Bench {
    /// The store as the next daemon finds it. This process lives on, so nothing of it may still be at work.
    async fn reopened(self) -> Self {
        self.nothing_staged().await;
        let store = Store::open_with(self.store.root(), StoreOptions::default()).unwrap();
        Self { store, ..self }
    }

    /// Pulls until the big layer hangs at `at` and the other one is in place, and gives up.
    async fn cut_off(&self, built: &Built, at: usize) {
        self.registry.serve("app", Some("1"), built);
        self.registry.change(&blob_path(built, 1), |a| a.hang = Some(at));
        let (report, mut watch) = watch::channel(PullProgress::default());
        let options = PullOptions { progress: Some(report), ..self.options() };
        let (store, reference) = (self.store.clone(), self.name("app:1"));
        let task = tokio::spawn(async move { store.pull(&reference, options).await });
        let there = |p: &PullProgress| {
            p.layers.len() == 2 && p.layers[0].state == LayerState::Done && p.layers[1].done == at as u64
        };
        watch.wait_for(there).await.unwrap();
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        self.nothing_staged().await;
        self.registry.change(&blob_path(built, 1), |a| a.hang = None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i05_a_pull_goes_on_where_the_last_one_was_cut_off_also_after_a_restart() {
    let built = big_image();
    for restart in [false, true] {
        let mut bench = Bench::new().await;
        let at = 2_000_000;
        bench.cut_off(&built, at).await;
        assert!(bench.store.list().is_empty());
        if restart {
            bench = bench.reopened().await;
        }
        assert_eq!(bench.entries("layers").len(), 1, "the layer that was complete is there");
        let pulled = bench.pull("app:1").await.unwrap();
        assert_eq!(read(&pulled, 1, "f"), noise(BIG));
        assert_eq!(bench.registry.ranges(&blob_path(&built, 1)), [at as u64], "the rest was asked for");
        assert_eq!(bench.registry.asked(&blob_path(&built, 0)).len(), 1, "and nothing of the other layer");
        assert!(bench.entries("downloads").is_empty() && bench.entries("fresh").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t15_what_a_daemon_killed_after_the_commit_has_left_goes_with_the_next_pull() {
    let (bench, built) = (Bench::new().await, big_image());
    bench.registry.serve("app", Some("1"), &built);
    bench.pull("app:1").await.unwrap();
    let left = bench.tmp.path().join("root/downloads").join(Digest::of(&built.layers[1].blob).hex());
    std::fs::write(&left, &built.layers[1].blob).unwrap();
    // Another image of the same layers: what the daemon had not come to say.
    bench.registry.serve("app", Some("2"), &image("other", big_image().layers));
    bench.pull("app:2").await.unwrap();
    assert!(bench.entries("downloads").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i04_a_kept_part_that_is_not_the_beginning_is_fetched_anew() {
    let (bench, built) = (Bench::new().await, big_image());
    bench.cut_off(&built, 2_000_000).await;
    let kept = bench.tmp.path().join("root/downloads").join(Digest::of(&built.layers[1].blob).hex());
    let length = kept.metadata().unwrap().len();
    assert_eq!(length, 2_000_000);
    // As a power cut leaves it.
    std::fs::write(&kept, vec![0; usize::try_from(length).unwrap()]).unwrap();
    let bench = bench.reopened().await;
    let pulled = bench.pull("app:1").await.unwrap();
    assert_eq!(read(&pulled, 1, "f"), noise(BIG));
    assert!(bench.entries("downloads").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i04_a_blob_that_is_wrong_is_not_kept() {
    let (bench, built) = (Bench::new().await, big_image());
    bench.registry.serve("app", Some("1"), &built);
    bench.registry.change(&blob_path(&built, 1), |a| *a.body.last_mut().unwrap() ^= 1);
    let error = bench.pull("app:1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{}", error.chain());
    bench.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t15_a_layer_of_another_boot_is_not_taken_up() {
    let (bench, built) = (Bench::new().await, big_image());
    bench.cut_off(&built, 1_500_000).await;
    let [note] = &bench.entries("fresh")[..] else { panic!("one note") };
    let note = bench.tmp.path().join("root/fresh").join(note);
    let text = std::fs::read_to_string(&note).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    std::fs::write(&note, text.replace(boot.trim(), "11111111-2222-3333-4444-555555555555")).unwrap();
    let bench = bench.reopened().await;
    assert!(bench.entries("layers").is_empty() && bench.entries("fresh").is_empty());
    bench.pull("app:1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i05_a_connection_that_is_cut_anywhere_gives_the_same_image() {
    let built = big_image();
    let size = built.layers[1].blob.len();
    for sixteenth in 0..16 {
        let bench = Bench::new().await;
        bench.registry.serve("app", Some("1"), &built);
        bench.registry.change(&blob_path(&built, 1), |a| a.cut = Some(size * sixteenth / 16));
        let pulled = bench.pull("app:1").await.unwrap_or_else(|e| panic!("{sixteenth}/16: {}", e.chain()));
        assert_eq!(read(&pulled, 1, "f"), noise(BIG));
        assert!(bench.entries("downloads").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i10_a_registry_that_stumbles_is_asked_again() {
    let bench = Bench::new().await;
    let built = image("s", two_layers());
    bench.registry.serve("app", Some("1"), &built);
    bench.registry.change(&blob_path(&built, 0), |a| a.first = Some((2, 503)));
    bench.registry.change(&blob_path(&built, 1), |a| a.closes = 2);
    bench.pull("app:1").await.unwrap();
    assert_eq!(bench.registry.asked(&blob_path(&built, 0)).len(), 3);
    assert_eq!(bench.registry.asked(&blob_path(&built, 1)).len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_blob_of_two_images_is_fetched_once() {
    let bench = Bench::new().await;
    let shared = || plain_layer(Tar::default().file("f", &noise(BIG)).end());
    let built = [
        image("a", vec![gzip_layer(&base()), shared()]),
        image("b", vec![shared()]),
        image("c", vec![shared(), gzip_layer(&base()), shared()]),
    ];
    for (tag, built) in ["a", "b", "c"].iter().zip(&built) {
        bench.registry.serve("app", Some(tag), built);
    }
    let pulls = ["app:a", "app:b", "app:c"].map(|name| bench.pull(name));
    let images = futures_util::future::try_join_all(pulls).await.unwrap();
    assert_eq!(read(&images[2], 2, "f"), noise(BIG));
    let asked = bench.registry.asked(&blob_path(&built[1], 0)).len();
    // Whoever came later found it kept, or the layer in place.
    assert!(asked <= 2, "asked {asked} times for one blob in three images");
    assert!(bench.entries("downloads").is_empty());
}

#[tokio::test]
async fn credentials_come_from_the_file_when_the_pull_brings_none() {
    let bench = Bench::new().await;
    let built = image("f", two_layers());
    let digest = bench.registry.serve("app", Some("1"), &built);
    let mut paths: Vec<String> = (0..2).map(|layer| blob_path(&built, layer)).collect();
    paths.push(format!("/v2/app/blobs/{}", Digest::of(&built.config)));
    paths.extend(["/v2/app/manifests/1".to_owned(), format!("/v2/app/manifests/{digest}")]);
    for path in paths {
        bench.registry.change(&path, |a| {
            (a.wants, a.challenge) = (Some("Basic dTpw".into()), "Basic realm=\"r\"".into());
        });
    }
    let auth_file = bench.tmp.path().join("auth.json");
    let auths = json!({"auths": {&bench.registry.host: {"auth": "dTpw"}, "other.example": {"auth": "eDp5"}}});
    std::fs::write(&auth_file, auths.to_string()).unwrap();
    let options = PullOptions { auth_file, ..bench.options() };
    // What the pull brings counts alone: it may be a pod that must not have more than its own.
    let own = PullOptions { auth: Some(Credentials::basic("who", "else")), ..options.clone() };
    let error = bench.store.pull(&bench.name("app:1"), own).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{}", error.chain());
    bench.store.pull(&bench.name("app:1"), options).await.unwrap();
}
