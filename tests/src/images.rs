//! The test images that hack/images builds: where their layouts are, and a registry that serves them.
//!
//! Must not know: what is in the images.

use std::env;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{command, place, wait};

/// The OCI layout of the repository that image `name` is in.
///
/// # Errors
/// hack/images has not built it.
pub fn layout(name: &str) -> Result<PathBuf> {
    let folder =
        env::var_os("CRISP_IMAGES").map_or_else(|| place::top().join(".cache/images"), PathBuf::from);
    let path = folder.join("layout").join(repository(name));
    ensure!(
        path.join("index.json").is_file(),
        "no layout {}: build it with hack/images build",
        path.display()
    );
    Ok(path)
}

/// Host and path of an image's name without tag and digest, as docker completes them.
fn repository(name: &str) -> String {
    let name = name.split('@').next().unwrap_or(name);
    let last = name.rfind('/').map_or(0, |at| at + 1);
    let name = name[last..].find(':').map_or(name, |at| &name[..last + at]);
    match name.split_once('/') {
        None => format!("docker.io/library/{name}"),
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
    }
}

/// docker-registry with all test images, on a loopback port of its own.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    /// Host and port.
    pub address: String,
}

impl Registry {
    /// Starts it and writes a `hosts.toml` tree to `hosts` that sends every public registry's name to it.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(hosts: &Path, tls: bool) -> Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let script = place::top().join("hack/images");
        let flag = if tls { &["--tls"][..] } else { &[] };
        command::run(
            Command::new(&script).arg("certs-d").arg(hosts).args(["--listen", &address]).args(flag),
        )?
        .ok()?;
        let child = Command::new(&script)
            .args(["serve", "--listen", &address])
            .args(flag)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", script.display()))?;
        let registry = Self { child, address };
        wait::until("the registry to listen", wait::LONG, || {
            std::net::TcpStream::connect(&registry.address)
        })?;
        Ok(registry)
    }
}

impl Drop for Registry {
    /// The script ends the registry that it has started when it is asked to end.
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::repository;

    #[test]
    fn names_are_completed_as_docker_does() {
        assert_eq!(repository("busybox:1.36"), "docker.io/library/busybox");
        assert_eq!(repository("progressivecoder/nodejs-demo"), "docker.io/progressivecoder/nodejs-demo");
        assert_eq!(repository("registry.k8s.io/pause:3.10"), "registry.k8s.io/pause");
        assert_eq!(repository("127.0.0.1:5000/a/b@sha256:0"), "127.0.0.1:5000/a/b");
    }
}
