//! A registry that can be stopped in the middle of what it sends: it counts the bytes of layers, sends no more than it
//! may, hangs up where it is told to, and knows which parts it was asked for.
//!
//! Must not know: who pulls, and what becomes of that.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use serde_json::json;

use crate::random::Random;
use crate::registry::digest;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Bytes that are sent at a time.
const PIECE: usize = 32 << 10;

/// A layer of the served image.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Digest of its blob, without `sha256:`.
    pub hex: String,
    /// Bytes of its blob.
    pub size: u64,
}

#[derive(Debug, Default)]
struct State {
    /// How often counting has begun; what was being sent before that ends.
    epoch: u64,
    /// Bytes of layers that were sent.
    sent: u64,
    /// No more than so many in all.
    limit: Option<u64>,
    /// Connections end after a random number of bytes.
    cuts: Option<Random>,
    /// Digest of a layer and the first byte that was asked for.
    asked: Vec<(String, u64)>,
}

#[derive(Debug)]
struct Shared {
    content: BTreeMap<String, (&'static str, Vec<u8>)>,
    layers: Vec<Layer>,
    state: Mutex<State>,
    changed: Condvar,
}

/// A running registry with one image. It ends with the test process.
#[derive(Debug)]
pub struct Faulty {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Faulty {
    /// Serves an image of layers of these sizes, filled with noise, as `app:1`.
    ///
    /// # Errors
    /// No port is free.
    pub fn serve(random: &mut Random, sizes: &[usize]) -> Result<Self> {
        let mut content = BTreeMap::new();
        let mut layers = Vec::new();
        let mut put = |kind, path: String, bytes: Vec<u8>| content.insert(path, (kind, bytes));
        let mut list = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            let bytes = tar(&format!("layer{index}"), &random.bytes(*size));
            let name = digest(&bytes);
            list.push(json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": name, "size": bytes.len(),
            }));
            layers
                .push(Layer { hex: name.trim_start_matches("sha256:").to_owned(), size: bytes.len() as u64 });
            put("application/octet-stream", format!("/v2/app/blobs/{name}"), bytes);
        }
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let diff_ids: Vec<_> = list.iter().map(|layer| layer["digest"].clone()).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": ["/x"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": list,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&config), "size": config.len(),
            },
        });
        let manifest = manifest.to_string().into_bytes();
        put("application/octet-stream", format!("/v2/app/blobs/{}", digest(&config)), config);
        put(MANIFEST, format!("/v2/app/manifests/{}", digest(&manifest)), manifest.clone());
        put(MANIFEST, "/v2/app/manifests/1".to_owned(), manifest);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on the loopback")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { content, layers, state: Mutex::default(), changed: Condvar::new() });
        let served = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&served);
                thread::spawn(move || shared.converse(stream));
            }
        });
        Ok(Self { address, shared })
    }

    /// Tells a node of it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn announce(&self, hosts: &Path) -> Result<()> {
        let folder = hosts.join(self.address.to_string());
        fs::create_dir_all(&folder)?;
        Ok(fs::write(folder.join("hosts.toml"), format!("server = \"http://{}\"\n", self.address))?)
    }

    /// The image's name.
    pub fn image(&self) -> String {
        format!("{}/app:1", self.address)
    }

    /// Its layers, bottom first.
    pub fn layers(&self) -> &[Layer] {
        &self.shared.layers
    }

    /// Bytes of all layers.
    pub fn total(&self) -> u64 {
        self.layers().iter().map(|layer| layer.size).sum()
    }

    /// Begins to count anew, and sends no more than `limit` bytes of layers from now on.
    pub fn begin(&self, limit: Option<u64>) {
        let mut state = self.shared.lock();
        state.epoch += 1;
        (state.sent, state.limit) = (0, limit);
        state.asked.clear();
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Hangs up after a random number of bytes, on every connection, or no more.
    pub fn cut(&self, random: Option<Random>) {
        self.shared.lock().cuts = random;
    }

    /// Bytes of layers sent since [`Faulty::begin`].
    pub fn sent(&self) -> u64 {
        self.shared.lock().sent
    }

    /// Which layers were asked for since [`Faulty::begin`], and from which byte on.
    pub fn asked(&self) -> Vec<(String, u64)> {
        self.shared.lock().asked.clone()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers one connection until either side ends it.
    fn converse(&self, stream: TcpStream) {
        let Ok(mut answer) = stream.try_clone() else { return };
        let mut lines = BufReader::new(stream).lines().map_while(|line| line.ok());
        while let Some(request) = lines.next() {
            let headers: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
            if self.answer(&mut answer, &request, &headers).is_err() {
                let _ = answer.shutdown(std::net::Shutdown::Both);
                return;
            }
        }
    }

    fn answer(&self, out: &mut TcpStream, request: &str, headers: &[String]) -> io::Result<()> {
        let mut words = request.split(' ');
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let path = target.split('?').next().unwrap_or("");
        let Some((kind, body)) = self.content.get(path) else {
            return out.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        };
        let from = headers.iter().find_map(|line| {
            let value = line.to_ascii_lowercase();
            value.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse::<usize>().ok()
        });
        let from = from.unwrap_or(0).min(body.len());
        let mut head = match from {
            0 => "HTTP/1.1 200 OK\r\n".to_owned(),
            _ => format!(
                "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {from}-{}/{}\r\n",
                body.len() - 1,
                body.len()
            ),
        };
        head.push_str(&format!("content-type: {kind}\r\ncontent-length: {}\r\n", body.len() - from));
        if *kind == MANIFEST {
            head.push_str(&format!("docker-content-digest: {}\r\n", digest(body)));
        }
        out.write_all(head.as_bytes())?;
        out.write_all(b"\r\n")?;
        if method == "HEAD" {
            return Ok(());
        }
        match self.layers.iter().find(|layer| path.ends_with(&layer.hex)) {
            None => out.write_all(body),
            Some(layer) => self.send(out, layer, &body[from..], from as u64),
        }
    }

    /// Sends a layer, as far as that is allowed now.
    fn send(&self, out: &mut TcpStream, layer: &Layer, body: &[u8], from: u64) -> io::Result<()> {
        let (cut, epoch) = {
            let mut state = self.lock();
            state.asked.push((layer.hex.clone(), from));
            (state.cuts.as_mut().map(|random| random.below(body.len().max(1))), state.epoch)
        };
        let mut rest = &body[..cut.unwrap_or(body.len())];
        while !rest.is_empty() {
            let allowed = self.take(rest.len().min(PIECE), epoch)?;
            out.write_all(&rest[..allowed])?;
            rest = &rest[allowed..];
        }
        if cut.is_some() { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }

    /// Waits until something may be sent, and counts it.
    fn take(&self, wanted: usize, epoch: u64) -> io::Result<usize> {
        let mut state = self.lock();
        loop {
            if state.epoch != epoch {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            let room = state.limit.map_or(u64::MAX, |limit| limit.saturating_sub(state.sent));
            let allowed = wanted.min(usize::try_from(room).unwrap_or(usize::MAX));
            if allowed > 0 {
                state.sent += allowed as u64;
                return Ok(allowed);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// An archive of one file.
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    crate::build::Tar::default().file(name, content).end()
}
