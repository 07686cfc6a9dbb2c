//! CDI (Container Device Interface): a device with a name, such as `vendor.com/gpu=0`, stands for changes to a container
//! that the device's vendor has written into a file on the node: device nodes, mounts, environment, groups.
//!
//! Names come from CRI's `CDI_devices` and, from device plugins that know only annotations, from `cdi.k8s.io/...`. The
//! files are read when a container names a device: drivers write them just before.
//!
//! Must not know: how the changes get into a container.

mod apply;
mod name;
mod registry;
mod spec;

use crisp_proto::runtime::v1 as cri;
use oci_spec::runtime::{LinuxDevice, Mount};

use crate::{error::RequestError, record::UserRecord};
use name::Name;

/// Annotations of a container whose values are names of devices, separated by commas.
const ANNOTATION_PREFIX: &str = "cdi.k8s.io/";

/// The changes that devices stand for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edits {
    /// Environment: the container's own variables of the same name give way.
    pub env: Vec<(String, String)>,
    /// Device nodes: others at the same place give way.
    pub nodes: Vec<Node>,
    /// Mounts: others at the same place give way.
    pub mounts: Vec<Mount>,
    /// Further groups of the container's process.
    pub groups: Vec<u32>,
}

/// A device node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The node.
    pub device: LinuxDevice,
    /// What may be done with the device: letters of `rwm`; empty: nothing.
    pub access: String,
}

/// A name that a request has, and the field that it comes from.
struct Wanted {
    field: String,
    name: Name,
}

/// The changes that the devices of a request stand for; none when it names none.
///
/// # Errors
/// `Invalid`: no such device, two of them, or a change that cannot be made. Names the device and the file.
pub fn edits(
    directories: &[String],
    config: &cri::ContainerConfig,
    user: &UserRecord,
) -> Result<Edits, RequestError> {
    let wanted = wanted(config)?;
    if wanted.is_empty() {
        return Ok(Edits::default());
    }
    let registry = registry::Registry::read(directories);
    let mut found: Vec<(&Wanted, registry::Found<'_>)> = Vec::new();
    for one in &wanted {
        let device = registry.find(&one.name).map_err(|reason| one.refused(&reason))?;
        found.push((one, device));
    }
    let mut edits = Edits::default();
    let mut files = Vec::new();
    for (one, device) in found {
        let mut parts = Vec::new();
        // What is common to the devices of a file comes once, before the first of them.
        if !files.contains(&device.path) {
            files.push(device.path);
            parts.push(&device.file.container_edits);
        }
        parts.push(&device.device.container_edits);
        for part in parts {
            apply::apply(part, user, &mut edits)
                .map_err(|reason| one.refused(&format!("{}: {reason}", device.path.display())))?;
        }
    }
    Ok(edits)
}

impl Wanted {
    fn refused(&self, reason: &str) -> RequestError {
        RequestError::invalid(format!("{} {}: {reason}", self.field, self.name))
    }
}

/// The names of a request, each once.
fn wanted(config: &cri::ContainerConfig) -> Result<Vec<Wanted>, RequestError> {
    let mut texts: Vec<(String, &str)> = Vec::new();
    for (index, device) in config.cdi_devices.iter().enumerate() {
        texts.push((format!("CDI_devices[{index}]"), &device.name));
    }
    let mut annotations: Vec<_> =
        config.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX)).collect();
    annotations.sort();
    for (key, value) in annotations {
        texts.extend(value.split(',').map(|name| (format!("annotations[{key}]"), name)));
    }
    let mut wanted: Vec<Wanted> = Vec::new();
    for (field, text) in texts {
        let name = Name::parse(text)
            .map_err(|reason| RequestError::invalid(format!("{field} {text:?}: {reason}")))?;
        if wanted.iter().all(|known| known.name != name) {
            wanted.push(Wanted { field, name });
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests;
