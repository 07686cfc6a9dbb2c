//! A registry for bad days: a few fixed answers over HTTP on the loopback, so that a test can serve what no honest
//! registry would.
//!
//! Must not know: what is wrong with the content it serves.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Content by path: media type and bytes.
type Content = BTreeMap<String, (String, Vec<u8>)>;

/// `sha256:...` of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A repository of one image with one layer, to be spoiled before it is served.
#[derive(Clone, Debug)]
pub struct OneImage {
    /// The layer as an uncompressed tar archive.
    pub layer: Vec<u8>,
    /// Digest that the manifest gives for the layer.
    pub layer_digest: String,
    /// Digest that the configuration gives for the uncompressed layer.
    pub diff_id: String,
}

impl OneImage {
    /// An image with an empty layer in which everything is right.
    pub fn good() -> Self {
        // The end of a tar archive: two blocks of zeros.
        let layer = vec![0; 1024];
        let layer_digest = digest(&layer);
        Self { layer, diff_id: layer_digest.clone(), layer_digest }
    }

    fn config(&self) -> Vec<u8> {
        let rootfs = serde_json::json!({"type": "layers", "diff_ids": [self.diff_id]});
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "rootfs": rootfs, "config": {"Cmd": ["/x"]},
        });
        config.to_string().into_bytes()
    }

    /// The image's manifest.
    pub fn manifest(&self) -> Vec<u8> {
        let config = self.config();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&config), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": self.layer_digest, "size": self.layer.len(),
            }],
        });
        manifest.to_string().into_bytes()
    }
}

/// A running server. It ends with the test process: it holds nothing that outlives that.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
}

impl Registry {
    /// Serves `image` as `repository:tag`, and its manifest under every digest in `also`.
    ///
    /// # Errors
    /// No port is free.
    pub fn serve(repository: &str, tag: &str, image: &OneImage, also: &[&str]) -> Result<Self> {
        Self::serve_to(repository, tag, image, also, None)
    }

    /// The same for those only who send this value of `Authorization`.
    ///
    /// # Errors
    /// No port is free.
    pub fn serve_to(
        repository: &str,
        tag: &str,
        image: &OneImage,
        also: &[&str],
        wants: Option<&str>,
    ) -> Result<Self> {
        let manifest = ("application/vnd.oci.image.manifest.v1+json".to_owned(), image.manifest());
        let blob = |bytes: Vec<u8>| ("application/octet-stream".to_owned(), bytes);
        let mut content = Content::from([("/v2/".to_owned(), blob(Vec::new()))]);
        let base = format!("/v2/{repository}");
        for name in also.iter().copied().chain([tag, &digest(&manifest.1)]) {
            content.insert(format!("{base}/manifests/{name}"), manifest.clone());
        }
        let config = image.config();
        content.insert(format!("{base}/blobs/{}", digest(&config)), blob(config));
        content.insert(format!("{base}/blobs/{}", image.layer_digest), blob(image.layer.clone()));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on the loopback")?;
        let address = listener.local_addr()?;
        let content = Arc::new((content, wants.map(|value| format!("authorization: {value}"))));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let content = Arc::clone(&content);
                thread::spawn(move || converse(stream, &content.0, content.1.as_deref()));
            }
        });
        Ok(Self { address })
    }

    /// Host and port as they stand in an image's name.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Tells a node that this registry speaks plain HTTP.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn announce(&self, hosts: &Path) -> Result<()> {
        let folder = hosts.join(self.host());
        fs::create_dir_all(&folder)?;
        Ok(fs::write(folder.join("hosts.toml"), format!("server = \"http://{}\"\n", self.address))?)
    }
}

/// Answers one connection until the client closes it. An error ends the connection, which is all a client can be told.
fn converse(stream: TcpStream, content: &Content, wants: Option<&str>) {
    let Ok(mut answer) = stream.try_clone() else { return };
    let mut lines = BufReader::new(stream).lines().map_while(|line| line.ok());
    while let Some(request) = lines.next() {
        let headers: Vec<String> = lines.by_ref().take_while(|header| !header.is_empty()).collect();
        if wants.is_some_and(|wants| !headers.iter().any(|header| header.eq_ignore_ascii_case(wants))) {
            let refusal = "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic realm=\"r\"\r\ncontent-length: 0\r\n\r\n";
            if answer.write_all(refusal.as_bytes()).is_err() {
                return;
            }
            continue;
        }
        let mut words = request.split(' ');
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let path = target.split('?').next().unwrap_or("");
        let (status, kind, body) = match content.get(path) {
            Some((kind, body)) => ("200 OK", kind.as_str(), body.as_slice()),
            None => ("404 Not Found", "text/plain", &b"no"[..]),
        };
        let mut reply =
            format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n", body.len());
        if path.contains("/manifests/") && status.starts_with("200") {
            reply.push_str(&format!("docker-content-digest: {}\r\n", digest(body)));
        }
        reply.push_str("\r\n");
        let body = if method == "HEAD" { &[] } else { body };
        if answer.write_all(reply.as_bytes()).and_then(|()| answer.write_all(body)).is_err() {
            return;
        }
    }
}
