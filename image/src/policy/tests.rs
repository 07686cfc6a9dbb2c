//! What a policy refuses, and what a signature must be.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::json;

use super::*;
use crate::fixture::registry::FakeRegistry;
use crate::fixture::{MANIFEST, Tar, descriptor, gzip_layer, image, require_root};
use crate::pull::{ErrorKind, PullOptions};
use crate::store::Store;

struct Bench {
    tmp: tempfile::TempDir,
    store: Store,
    registry: FakeRegistry,
}

/// A key pair and its public half as PEM.
fn key() -> (EcdsaKeyPair, String) {
    let random = ring::rand::SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
    let prefix = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE";
    let point = STANDARD.encode(&pair.public_key().as_ref()[1..]);
    (pair, format!("-----BEGIN PUBLIC KEY-----\n{prefix}{point}\n-----END PUBLIC KEY-----\n"))
}

impl Bench {
    async fn new() -> Self {
        require_root();
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(&tmp.path().join("root")).unwrap();
        Self { tmp, store, registry: FakeRegistry::start().await }
    }

    fn policy(&self) -> PathBuf {
        self.tmp.path().join("policy.json")
    }

    fn write(&self, policy: serde_json::Value) {
        std::fs::write(self.policy(), policy.to_string()).unwrap();
    }

    fn name(&self, rest: &str) -> Reference {
        Reference::parse(&format!("{}/{rest}", self.registry.host)).unwrap()
    }

    async fn pull(&self, rest: &str) -> Result<(), (ErrorKind, String)> {
        let options = PullOptions {
            hosts_dir: self.tmp.path().join("certs.d"),
            policy: self.policy(),
            ..PullOptions::default()
        };
        let pulled = self.store.pull(&self.name(rest), options).await;
        pulled.map(drop).map_err(|e| (e.kind(), e.chain()))
    }

    /// Puts a signature by `pair` beside the image: of `digest`, for `name`.
    fn sign(&self, pair: &EcdsaKeyPair, under: Digest, digest: Digest, name: &str) {
        let statement = json!({"critical": {
            "identity": {"docker-reference": name}, "image": {"docker-manifest-digest": digest.to_string()},
            "type": "cosign container image signature"}, "optional": null});
        let statement = statement.to_string().into_bytes();
        let random = ring::rand::SystemRandom::new();
        let signature = STANDARD.encode(pair.sign(&random, &statement).unwrap());
        let config = b"{}";
        let mut layer = descriptor("application/vnd.dev.cosign.simplesigning.v1+json", &statement);
        layer["annotations"] = json!({"dev.cosignproject.cosign/signature": signature});
        let config_entry = descriptor("application/vnd.oci.image.config.v1+json", config);
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config_entry, "layers": [layer]});
        self.registry.blob("app", config);
        self.registry.blob("app", &statement);
        let tag = format!("sha256-{}.sig", under.hex());
        self.registry.manifest("app", Some(&tag), MANIFEST, manifest.to_string().as_bytes());
    }

    /// Nothing of the image was fetched beyond its manifest.
    fn untouched(&self, layer: &str) {
        assert!(self.store.list().is_empty() && self.registry.asked(layer).is_empty());
        let staged = std::fs::read_dir(self.tmp.path().join("root/staging")).unwrap().count();
        assert_eq!(staged, 0);
    }
}

#[tokio::test]
async fn a_rejected_image_is_not_even_asked_for() {
    let bench = Bench::new().await;
    bench.registry.serve("app", Some("1"), &image("a", vec![gzip_layer(&Tar::default().end())]));
    let host = bench.registry.host.clone();
    let accept = json!([{"type": "insecureAcceptAnything"}]);
    for (scope, allowed) in [
        (format!("{host}/app:1"), true),
        (format!("{host}/app"), true),
        (host.clone(), true),
        (String::new(), true),
        (format!("{host}/other"), false),
        (format!("{host}/app:2"), false),
        ("127.0.0.1".to_owned(), false),
    ] {
        bench.write(json!({"default": [{"type": "reject"}], "transports": {"docker": {&scope: accept}}}));
        let pulled = bench.pull("app:1").await;
        assert_eq!(pulled.is_ok(), allowed, "{scope}: {pulled:?}");
        if let Err((kind, text)) = pulled {
            assert_eq!(kind, ErrorKind::Policy);
            assert!(text.contains("rejected") && text.contains("all images"), "{text}");
        } else {
            bench.store.remove(&bench.name("app:1").to_string()).await.unwrap();
        }
    }
    let before = bench.registry.asked("").len();
    bench.write(json!({"default": accept, "transports": {"docker": {&host: [{"type": "reject"}]}}}));
    assert!(bench.pull("app:1").await.unwrap_err().1.contains(&host));
    assert_eq!(bench.registry.asked("").len(), before, "the registry was asked");
}

#[tokio::test]
async fn a_policy_that_is_not_understood_refuses_everything() {
    let bench = Bench::new().await;
    bench.registry.serve("app", Some("1"), &image("a", vec![gzip_layer(&Tar::default().end())]));
    for text in [
        "",
        "{}",
        r#"{"default":[]}"#,
        r#"{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}]}"#,
        r#"{"default":[{"type":"insecureAcceptAnything","but":"no"}]}"#,
        r#"{"default":[{"type":"insecureAcceptAnything"}],"more":1}"#,
        r#"{"default":[{"type":"sigstoreSigned"}]}"#,
        r#"{"default":[{"type":"sigstoreSigned","keyPath":"/nowhere/key.pub"}]}"#,
        r#"{"default":[{"type":"sigstoreSigned","keyData":"eHh4"}]}"#,
        r#"{"default":[{"type":"sigstoreSigned","fulcio":{}}]}"#,
    ] {
        std::fs::write(bench.policy(), text).unwrap();
        let (kind, message) = bench.pull("app:1").await.expect_err(text);
        assert_eq!(kind, ErrorKind::Policy, "{text}: {message}");
        bench.untouched("/blobs/");
    }
    std::fs::remove_file(bench.policy()).unwrap();
    bench.pull("app:1").await.unwrap();
}

#[tokio::test]
async fn a_signature_must_be_by_the_key_for_the_image_and_for_the_name() {
    let bench = Bench::new().await;
    let ((pair, pem), (other, _)) = (key(), key());
    let file = bench.tmp.path().join("key.pub");
    std::fs::write(&file, &pem).unwrap();
    let layer = gzip_layer(&Tar::default().end());
    let blob = Digest::of(&layer.blob).to_string();
    let digest = bench.registry.serve("app", Some("1"), &image("a", vec![layer]));
    let require = |identity: serde_json::Value| {
        let mut requirement = json!({"type": "sigstoreSigned", "keyPath": file});
        if !identity.is_null() {
            requirement["signedIdentity"] = identity;
        }
        bench.write(json!({"default": [requirement]}));
    };
    let repository = bench.name("app:1").name();
    let named = format!("{repository}:1");
    require(json!(null));
    let (kind, text) = bench.pull("app:1").await.unwrap_err();
    assert_eq!(kind, ErrorKind::Policy);
    assert!(text.contains("it has none"), "{text}");
    for (signer, about, name, word) in [
        (&other, digest, named.as_str(), "another key"),
        (&pair, Digest::of(b"other"), named.as_str(), "is for sha256:"),
        (&pair, digest, "x.io/app:1", "does not stand for"),
        (&pair, digest, repository.as_str(), "does not stand for"),
    ] {
        bench.sign(signer, digest, about, name);
        let (kind, text) = bench.pull("app:1").await.unwrap_err();
        assert_eq!(kind, ErrorKind::Policy);
        assert!(text.contains(word) && text.contains("key.pub"), "{word}: {text}");
        bench.untouched(&blob);
    }
    bench.sign(&pair, digest, digest, &named);
    bench.pull("app:1").await.unwrap();
    // An image that is here is no exception.
    bench.sign(&other, digest, digest, &named);
    assert!(bench.pull("app:1").await.is_err());
    bench.sign(&pair, digest, digest, &repository);
    require(json!({"type": "matchRepository"}));
    bench.pull("app:1").await.unwrap();
    require(json!({"type": "exactRepository", "dockerRepository": "x.io/else"}));
    assert!(bench.pull("app:1").await.is_err());
    bench.sign(&pair, digest, digest, "x.io/signed/app:1");
    require(json!({"type": "remapIdentity", "prefix": bench.registry.host, "signedPrefix": "x.io/signed"}));
    bench.pull("app:1").await.unwrap();
    require(json!({"type": "exactReference", "dockerReference": "x.io/signed/app:1"}));
    bench.pull("app:1").await.unwrap();
    let data = json!([{"type": "sigstoreSigned", "keyData": STANDARD.encode(&pem),
                       "signedIdentity": {"type": "exactReference", "dockerReference": "x.io/signed/app:1"}}]);
    bench.write(json!({"default": data}));
    bench.pull("app:1").await.unwrap();
}

#[test]
fn scopes_go_from_narrow_to_wide() {
    let of = |text: &str| scopes(&Reference::parse(text).unwrap());
    assert_eq!(
        of("r.a.example.com:5000/team/app:1"),
        [
            "r.a.example.com:5000/team/app:1",
            "r.a.example.com:5000/team/app",
            "r.a.example.com:5000/team",
            "r.a.example.com:5000",
            "*.a.example.com",
            "*.example.com",
            "*.com",
            ""
        ]
    );
    assert_eq!(of("busybox")[0], "docker.io/library/busybox:latest");
}
