//! A cgroup for each CNI plugin that runs, so that all it has started can be ended with it.
//!
//! ```text
//!  cgroupfs:  beside the default parent of pods    <parent>/crisp-cni-<instance>/<number>-<pod>
//!  systemd:   in the daemon's own unit             <unit>/crisp-cni-<instance>/<number>-<pod>
//! ```
//!
//! The one in the middle is there only while a plugin runs.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crisp_monitor::client::confined;
use crisp_netns::cni::{Confine, Confined};
use crisp_runtime::cgroup::{Cgroup, CgroupError, CgroupPath, Hierarchy};

use crate::{
    cgroups::parent::Driver,
    config::CgroupConfig,
    error::{RequestError, Stage},
};

/// How long killed processes may take to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of a pod's id goes into a name.
const SHORT: usize = 12;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Cells(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hierarchy: Hierarchy,
    /// Where the one in the middle is made.
    above: CgroupPath,
    name: String,
    monitor: PathBuf,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    /// Plugins that run.
    now: usize,
    /// Plugins that have run: no name comes twice.
    ever: u64,
}

impl Cells {
    pub(super) fn open(config: &CgroupConfig, instance: &str, monitor: &Path) -> Result<Self, RequestError> {
        let hierarchy = Hierarchy::open(Path::new(&config.root)).stage("cgroup.root")?;
        let above = match Driver::of(config) {
            Driver::Systemd => own_cgroup(),
            driver => {
                let pods = CgroupPath::new(&driver.default_parent(config)?).stage("cgroup.default_parent")?;
                pods.parent().filter(|parent| parent.below(hierarchy.root()).is_dir())
            }
        };
        let above = above.map_or_else(|| CgroupPath::new("/"), Ok).stage("cgroup")?;
        Ok(Self(Arc::new(Inner {
            hierarchy,
            above,
            name: format!("crisp-cni-{instance}"),
            monitor: monitor.to_owned(),
            used: Mutex::default(),
        })))
    }

    /// Ends whatever runs in there. To be called before anything does.
    pub(super) fn sweep(&self) -> Result<(), CgroupError> {
        match self.0.hierarchy.open_cgroup(&self.0.above.join(&self.0.name)?) {
            Ok(cgroup) => {
                tracing::info!("ending CNI plugins that the daemon before this one has started");
                cgroup.kill()?;
                cgroup.remove(PATIENCE)
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn make(&self, what: &str) -> Result<Cgroup, CgroupError> {
        let inner = &self.0;
        let mut used = inner.used.lock().unwrap_or_else(PoisonError::into_inner);
        let middle = match inner.hierarchy.open_cgroup(&inner.above)?.sub(&inner.name) {
            Err(error) if error.is_exists() => {
                inner.hierarchy.open_cgroup(&inner.above.join(&inner.name)?)?
            }
            made => made?,
        };
        used.ever += 1;
        let cell = middle.sub(&format!("{}-{}", used.ever, &what[..what.len().min(SHORT)]));
        if cell.is_ok() {
            used.now += 1;
        }
        cell
    }

    /// The last one takes the one in the middle along.
    fn unmake(&self, cell: &Cgroup) -> Result<(), CgroupError> {
        cell.kill()?;
        cell.remove(PATIENCE)?;
        let mut used = self.0.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.now = used.now.saturating_sub(1);
        if used.now > 0 {
            return Ok(());
        }
        match self.0.hierarchy.open_cgroup(&self.0.above.join(&self.0.name)?) {
            Ok(middle) => middle.remove(Duration::ZERO),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The daemon's own, as the kernel names it; `None`: it cannot be told.
fn own_cgroup() -> Option<CgroupPath> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    CgroupPath::new(path).ok()
}

impl Confine for Cells {
    fn confine(&self, what: &str) -> io::Result<Box<dyn Confined>> {
        let cgroup = self.make(what).map_err(io::Error::other)?;
        Ok(Box::new(Cell { cells: self.clone(), cgroup }))
    }
}

#[derive(Debug)]
struct Cell {
    cells: Cells,
    cgroup: Cgroup,
}

impl Confined for Cell {
    /// The plugin is in its cgroup before its first instruction, and the daemon forks nothing: see
    /// [`confined`].
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(&self.cells.0.monitor);
        command.args(confined::arguments(self.cgroup.location(), program));
        command
    }

    fn end(&mut self, _child: u32) -> io::Result<()> {
        self.cells.unmake(&self.cgroup).map_err(io::Error::other)
    }
}
