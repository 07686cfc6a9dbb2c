//! One of the two runtimes while it does what a scenario asks, and what the probe sees there.
//!
//! Must not know: which of the two it is, and what is expected of it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use crisp_proto::runtime::v1 as cri;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::compare::{Facts, REQUEST};
use super::facts::{self, Known};
use super::scenarios::{Pod, Scenario};
use crate::cri::{Cri, container_config, pod_config};
use crate::{place, wait};

/// A runtime, and the places that are its own.
#[derive(Debug)]
pub struct Side {
    /// Its name, for messages.
    pub name: &'static str,
    /// Its client.
    pub cri: Cri,
    /// The cgroup, or slice, for all its pods.
    pub cgroup: String,
    /// The folder for all pods' logs.
    pub logs: PathBuf,
    /// A folder for what scenarios mount.
    pub data: PathBuf,
}

/// What a scenario's container says of the requests for it, and of itself.
#[derive(Debug)]
pub struct Seen {
    /// All facts.
    pub facts: Facts,
    /// Why a request was refused, if one was.
    pub refusal: Option<String>,
}

impl Side {
    /// Runs a pod and in it, one after the other, the containers of `scenarios`. They all run until the pod is taken
    /// away.
    ///
    /// # Errors
    /// The pod does not run, or a container that runs does not report.
    pub fn run(&self, pod: &Pod, scenarios: &[&Scenario]) -> Result<Vec<Seen>> {
        let volumes = Volumes::make(&self.data.join(pod.name))?;
        let cgroup = format!("{}/pod-{}", self.cgroup, pod.name);
        let mut config = pod_config(pod.name, &cgroup, &self.logs);
        (pod.change)(&mut config);
        let id = self.cri.run_pod(&config).with_context(|| format!("{}: RunPodSandbox", self.name))?;
        let known = self.known(&id)?;
        let mut all = Vec::new();
        for scenario in scenarios {
            let seen = self.look(&id, &config, scenario, (&known, &volumes));
            all.push(seen.with_context(|| format!("{}: {}", self.name, scenario.name))?);
        }
        self.cri.stop_pod(&id).with_context(|| format!("{}: StopPodSandbox", self.name))?;
        self.cri.remove_pod(&id).with_context(|| format!("{}: RemovePodSandbox", self.name))?;
        Ok(all)
    }

    /// Removes the cgroups that pods were in. Whoever asks for a parent cgroup removes it.
    ///
    /// # Errors
    /// One is still in use.
    pub fn clear(&self, cgroup_root: &Path) -> Result<()> {
        let top = cgroup_root.join(self.cgroup.trim_start_matches('/'));
        // Without controllers containerd makes none there.
        if !top.exists() {
            return Ok(());
        }
        for entry in fs::read_dir(&top).with_context(|| format!("read {}", top.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
            }
        }
        fs::remove_dir(&top).with_context(|| format!("remove {}", top.display()))
    }

    /// What a report cannot help to hold of its pod.
    fn known(&self, pod: &str) -> Result<Known> {
        let mut known = Known { without_cgroups: !place::has_controllers(), ..Known::default() };
        for entry in fs::read_dir("/proc/self/ns")? {
            let link = fs::read_link(entry?.path())?;
            known.host_namespaces.insert(link.display().to_string());
        }
        known.names.push((pod.to_owned(), "<pod>".to_owned()));
        known.names.push((self.cgroup.clone(), "<cgroup>".to_owned()));
        let network = self.cri.pod(pod)?.network.unwrap_or_default();
        let addresses = network.additional_ips.into_iter().map(|one| one.ip).chain([network.ip]);
        let addresses = addresses.filter(|address| !address.is_empty());
        known.names.extend(addresses.map(|address| (address, "<address>".to_owned())));
        Ok(known)
    }

    fn look(
        &self,
        pod: &str,
        pod_config: &cri::PodSandboxConfig,
        scenario: &Scenario,
        (known, volumes): (&Known, &Volumes),
    ) -> Result<Seen> {
        let mut config = container_config(scenario.name, scenario.image, &[]);
        (scenario.change)(&mut config, &volumes.folder);
        let log = Path::new(&pod_config.log_directory).join(&config.log_path);
        fs::create_dir_all(log.parent().context("a log without a folder")?)?;
        let mut facts = Facts::new();
        let mut note = |step: &str, code: String| facts.insert(format!("{REQUEST}{step}"), code);
        let id = match self.cri.create(pod, &config, pod_config) {
            Ok(id) => id,
            Err(status) => {
                note("CreateContainer", "refused".to_owned());
                return Ok(Seen { facts, refusal: Some(status.to_string()) });
            }
        };
        note("CreateContainer", "ok".to_owned());
        if let Err(status) = self.cri.start(&id) {
            note("StartContainer", "refused".to_owned());
            return Ok(Seen { facts, refusal: Some(status.to_string()) });
        }
        note("StartContainer", "ok".to_owned());
        let mut known = known.clone();
        known.names.push((id.clone(), "<container>".to_owned()));
        let report = self.wait_for_report(&id, &log)?;
        facts::read(&report, "init", &known, &mut facts)?;
        known.keyring = facts::keyring(&report);
        let said = self.cri.exec(&id, &["/probe", "from", "ExecSync"])?;
        if said.code != 0 {
            bail!("the probe ended with {}: {}{}", said.code, said.stdout, said.stderr);
        }
        facts::read(&said.stdout, "exec", &known, &mut facts)?;
        Ok(Seen { facts, refusal: None })
    }

    /// The whole report of a container's first process, from its log.
    fn wait_for_report(&self, id: &str, log: &Path) -> Result<String> {
        wait::until("the probe's report", wait::LONG, || {
            let text = logged(&fs::read_to_string(log).map_err(|error| error.to_string())?)?;
            if text.lines().any(|line| line.starts_with("end ")) {
                return Ok(text);
            }
            let state = self.cri.container(id).map_err(|status| status.to_string())?;
            Err(format!("{state:?}, {} lines", text.lines().count()))
        })
    }
}

/// What scenarios mount: a folder with another file system in it, files, a seccomp profile.
#[derive(Debug)]
struct Volumes {
    folder: PathBuf,
    inner: PathBuf,
}

impl Volumes {
    fn make(folder: &Path) -> Result<Self> {
        let inner = folder.join("folder/inner");
        fs::create_dir_all(&inner)?;
        fs::create_dir_all(folder.join("shm"))?;
        fs::write(folder.join("folder/file"), "on the host\n")?;
        fs::write(folder.join("hosts"), "10.9.9.9 elsewhere\n")?;
        fs::write(folder.join("profile.json"), super::scenarios::PROFILE)?;
        mount(Some("inner"), &inner, Some("tmpfs"), MsFlags::MS_NODEV, Some("size=4m"))?;
        fs::write(inner.join("file"), "on a file system in there\n")?;
        Ok(Self { folder: folder.to_owned(), inner })
    }
}

impl Drop for Volumes {
    /// After a failure a container may still use it; then it goes with hack/vm or hack/node.
    fn drop(&mut self) {
        let _ = umount2(&self.inner, MntFlags::MNT_DETACH);
    }
}

/// The text in a log file: lines of `time stream tag text`, the tag `P` where a line goes on.
fn logged(log: &str) -> Result<String, String> {
    let mut text = String::new();
    for line in log.lines() {
        let mut parts = line.splitn(4, ' ').skip(2);
        let (Some(tag), Some(rest)) = (parts.next(), parts.next()) else {
            return Err(format!("not a line of a log: {line}"));
        };
        text.push_str(rest);
        if tag == "F" {
            text.push('\n');
        }
    }
    Ok(text)
}
