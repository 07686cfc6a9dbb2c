//! Registries and images that mean harm.

use super::*;

/// A manifest of one layer with the given text in place of the layer's digest, size and more.
fn manifest_with(bench: &Bench, layer: &str) {
    let built = image("m", vec![plain_layer(base())]);
    bench.registry.blob("app", &built.config);
    let config = descriptor("application/vnd.oci.image.config.v1+json", &built.config);
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{config},"layers":[{layer}]}}"#,
        crate::fixture::MANIFEST
    );
    bench.registry.manifest("app", Some("1"), crate::fixture::MANIFEST, text.as_bytes());
}

fn layer_text(digest: &str, size: &str) -> String {
    format!(r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":{size}}}"#)
}

#[tokio::test]
async fn i02_a_bad_digest_sends_no_request_and_touches_no_file() {
    let hex = Digest::of(b"x").hex();
    for digest in [
        "sha256:../../../x".to_owned(),
        format!("sha256:{}", &hex[1..]),
        format!("sha256:{}", hex.to_uppercase()),
        "md5:d41d8cd98f00b204e9800998ecf8427e".to_owned(),
        format!("sha256:{}%2f..", &hex[5..]),
        format!("sha512:{hex}{hex}"),
        hex.clone(),
        String::new(),
    ] {
        let bench = Bench::new().await;
        manifest_with(&bench, &layer_text(&digest, "10"));
        let error = bench.pull("app:1").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed, "{digest}: {}", error.chain());
        assert!(bench.registry.asked("/blobs/").is_empty(), "{digest}: a blob was asked for");
        bench.nothing_left().await;
        assert!(bench.entries("layers").is_empty());
    }
}

#[tokio::test]
async fn i03_declared_sizes_are_kept_to() {
    for size in ["-1", "9223372036854775808", "1e3", "\"5\"", "null"] {
        let bench = Bench::new().await;
        manifest_with(&bench, &layer_text(&Digest::of(b"x").to_string(), size));
        assert_eq!(bench.pull("app:1").await.unwrap_err().kind(), ErrorKind::Malformed, "{size}");
        bench.nothing_left().await;
    }
    // Nothing declared, something else sent, and no length said: the stream is cut at what was declared.
    let content = noise(3 << 20);
    for declared in [0, 1, content.len() - 1, content.len() + 1, content.len() * 1000] {
        let bench = Bench::new().await;
        manifest_with(&bench, &layer_text(&Digest::of(&content).to_string(), &declared.to_string()));
        let path = bench.registry.blob("app", &content);
        bench.registry.change(&path, |a| a.headers.push(("Content-Length".into(), declared.to_string())));
        // Where less comes than was declared, nothing comes any more.
        let options = PullOptions { progress_timeout: Duration::from_millis(300), ..bench.options() };
        let error = bench.store.pull(&bench.name("app:1"), options).await.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::DigestMismatch | ErrorKind::RegistryUnavailable),
            "{declared}: {}",
            error.chain()
        );
        bench.nothing_staged().await;
        assert!(bench.store.list().is_empty() && bench.entries("layers").is_empty());
    }
}

#[tokio::test]
async fn i08_layers_of_other_kinds_are_refused_and_foreign_urls_never_asked() {
    for kind in [
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.erofs",
        "application/vnd.oci.image.layer.v1.erofs",
        "application/vnd.squashfs",
        "text/html",
        "",
    ] {
        let bench = Bench::new().await;
        let digest = Digest::of(b"x");
        manifest_with(&bench, &format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":1}}"#));
        let error = bench.pull("app:1").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed, "{kind}: {}", error.chain());
        assert!(error.chain().contains(kind), "{}", error.chain());
        assert!(bench.registry.asked("/blobs/").is_empty());
    }
    let (bench, elsewhere) = (Bench::new().await, FakeRegistry::start().await);
    let layer = plain_layer(base());
    let digest = Digest::of(&layer.blob);
    let kind = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    let url = format!("http://{}/secret", elsewhere.host);
    let size = layer.blob.len();
    let text = format!(
        r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size},"urls":["{url}","file:///etc/shadow","http://169.254.169.254/"]}}"#
    );
    let built = image("m", vec![layer]);
    bench.registry.blob("app", &built.config);
    let config = descriptor("application/vnd.oci.image.config.v1+json", &built.config);
    let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{text}]}}"#);
    bench.registry.manifest("app", Some("1"), crate::fixture::MANIFEST, manifest.as_bytes());
    let error = bench.pull("app:1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.chain());
    assert!(elsewhere.asked("").is_empty(), "a foreign URL was followed");
}

#[tokio::test]
async fn t16_a_table_of_contents_in_a_zstd_layer_says_nothing() {
    let bench = Bench::new().await;
    let plain = base();
    // zstd:chunked appends its table as a skippable frame; this one names a file that is not in the tar.
    let table = br#"{"version":1,"entries":[{"type":"reg","name":"etc/evil","size":1}]}"#;
    let mut blob = crate::fixture::zstd(&plain);
    blob.extend_from_slice(&0x184d_2a50_u32.to_le_bytes());
    blob.extend_from_slice(&u32::try_from(table.len()).unwrap().to_le_bytes());
    blob.extend_from_slice(table);
    let layer = LayerBlob {
        blob,
        diff_id: Digest::of(&plain),
        media_type: "application/vnd.oci.image.layer.v1.tar+zstd",
    };
    bench.registry.serve("app", Some("1"), &image("z", vec![layer]));
    let pulled = bench.pull("app:1").await.unwrap();
    assert_eq!(read(&pulled, 0, "bin/run"), b"#!");
    assert!(!pulled.layers[0].directory.join("etc/evil").exists());
}

#[tokio::test]
async fn i10_what_a_challenge_may_ask_for() {
    let (bench, inside) = (Bench::new().await, FakeRegistry::start().await);
    let built = image("c", two_layers());
    bench.registry.serve("app", Some("1"), &built);
    let challenge = |text: String| {
        bench.registry.change("/v2/app/manifests/1", |a| {
            (a.wants, a.challenge) = (Some("never".into()), text.clone());
        });
    };
    let auth = || Some(Credentials::basic("u", "p"));
    // A token that is larger than any.
    let token = serde_json::to_vec(&json!({"token": "t".repeat(1 << 20)})).unwrap();
    inside.put("/big", Answer { status: 200, body: token, ..Answer::default() });
    challenge(format!(r#"Bearer realm="http://{}/big""#, inside.host));
    let options = || PullOptions { auth: auth(), ..bench.options() };
    let error = bench.store.pull(&bench.name("app:1"), options()).await.unwrap_err();
    assert!(error.chain().contains("larger than"), "{}", error.chain());
    // A realm that only redirects: a token server that sends elsewhere gets no second request.
    let location = vec![("Location".to_owned(), format!("http://{}/deep", inside.host))];
    inside.put("/redirect", Answer { status: 302, headers: location, ..Answer::default() });
    challenge(format!(r#"Bearer realm="http://{}/redirect""#, inside.host));
    assert!(bench.store.pull(&bench.name("app:1"), options()).await.is_err());
    assert!(inside.asked("/deep").is_empty());
    // 401 for ever: one answer to it, then it counts.
    let sesame = serde_json::to_vec(&json!({"token": "sesame"})).unwrap();
    inside.put("/token", Answer { status: 200, body: sesame, ..Answer::default() });
    challenge(format!(r#"Bearer realm="http://{}/token""#, inside.host));
    let before = bench.registry.asked("/manifests/1").len();
    let error = bench.store.pull(&bench.name("app:1"), options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{}", error.chain());
    assert!(bench.registry.asked("/manifests/1").len() - before <= 3);
    for odd in ["", "Bearer", "Bearer realm=\"file:///etc/shadow\"", "Digest x=y", "Bearer realm=\"\u{7f}\""]
    {
        challenge(odd.to_owned());
        assert!(bench.store.pull(&bench.name("app:1"), options()).await.is_err(), "{odd}");
    }
    bench.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t05_layers_that_race_into_each_others_paths_stay_apart() {
    let bench = Bench::new().await;
    let canary = bench.tmp.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("f"), "canary").unwrap();
    let before = crate::fixture::fingerprint(&canary);
    let target = canary.display().to_string();
    for round in 0..20 {
        // One layer makes `d` a link out, others write through it, change what it leads to, and make it a directory.
        let salt = format!("{round}");
        let layers = vec![
            gzip_layer(&Tar::default().symlink("d", &target).file(&format!("s{round}"), b"").end()),
            gzip_layer(&Tar::default().file("d/f", b"evil").file("d/x", salt.as_bytes()).end()),
            gzip_layer(&Tar::default().dir("d").hardlink("h", "d").end()),
        ];
        bench.registry.serve("app", Some("bad"), &image(&salt, layers));
        assert!(bench.pull("app:bad").await.is_err(), "a hard link to a directory");
        let layers = vec![
            gzip_layer(&Tar::default().symlink("d", &target).file(&format!("s{round}"), b"").end()),
            gzip_layer(&Tar::default().file("d/f", b"evil").file("d/x", salt.as_bytes()).end()),
            gzip_layer(&Tar::default().with(b'5', "d", b"", |h| h.set_mode(0o777)).end()),
        ];
        bench.registry.serve("app", Some("1"), &image(&salt, layers));
        let pulled = bench.pull("app:1").await.unwrap();
        // What the link leads to is not in the image, so the directory takes the link's place.
        assert_eq!(read(&pulled, 1, "d/f"), b"evil");
        bench.store.remove(&pulled.id.to_string()).await.unwrap();
    }
    assert_eq!(crate::fixture::fingerprint(&canary), before);
}

#[tokio::test]
async fn i11_labels_are_data() {
    let bench = Bench::new().await;
    let layer = plain_layer(base());
    let labels = json!({
        "containerd.io/restart.loguri": "binary:///bin/evil",
        "io.cri-containerd.kind": "sandbox",
        "io.kubernetes.pod.uid": "x",
        "crisp.instance": "x",
    });
    let config = serde_json::to_vec(&json!({
        "architecture": Platform::host().architecture, "os": "linux", "config": {"Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id.to_string()]},
    }))
    .unwrap();
    let list = [descriptor(layer.media_type, &layer.blob)];
    let config_entry = descriptor("application/vnd.oci.image.config.v1+json", &config);
    let manifest = json!({"schemaVersion": 2, "config": config_entry, "layers": list});
    let built = Built { config, manifest: serde_json::to_vec(&manifest).unwrap(), layers: vec![layer] };
    bench.registry.serve("app", Some("1"), &built);
    let pulled = bench.pull("app:1").await.unwrap();
    assert_eq!(pulled.config.labels.len(), 4, "they are shown, and nothing else is made of them");
    assert!(pulled.config.entrypoint.is_empty() && pulled.config.env.is_empty());
}
