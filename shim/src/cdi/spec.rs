//! A spec file: CDI's own format, in JSON or YAML (CDI specification 1.1.0). A field that is not known is an error: what
//! it asks for would be missing.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::name::{check_device, check_kind};

/// First and last version of the format, without the patch number.
const VERSIONS: [(u32, u32); 8] = [(0, 3), (0, 4), (0, 5), (0, 6), (0, 7), (0, 8), (1, 0), (1, 1)];

/// What a file says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    cdi_version: String,
    pub(super) kind: String,
    #[serde(default, rename = "annotations", deserialize_with = "nullable")]
    _annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) devices: Vec<Device>,
    /// Made once if any of the devices is used.
    #[serde(default, deserialize_with = "nullable")]
    pub(super) container_edits: ContainerEdits,
}

/// A device.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default, rename = "annotations", deserialize_with = "nullable")]
    _annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) container_edits: ContainerEdits,
}

/// Changes to a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ContainerEdits {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) env: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) device_nodes: Vec<DeviceNode>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) mounts: Vec<Mount>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) additional_gids: Vec<u32>,
    /// Known, and refused where they are used.
    #[serde(default, deserialize_with = "nullable")]
    pub(super) hooks: Vec<Hook>,
    pub(super) intel_rdt: Option<serde_json::Value>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) net_devices: Vec<serde_json::Value>,
}

/// A node to be made.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DeviceNode {
    /// In the container.
    pub(super) path: String,
    /// On the host; empty: the same.
    #[serde(default, deserialize_with = "nullable")]
    pub(super) host_path: String,
    #[serde(default, rename = "type", deserialize_with = "nullable")]
    pub(super) kind: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) major: i64,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) minor: i64,
    pub(super) file_mode: Option<u32>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// A mount to be made.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Mount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) options: Vec<String>,
    #[serde(default, rename = "type", deserialize_with = "nullable")]
    pub(super) kind: String,
}

/// A program to be run on the host.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Hook {
    pub(super) hook_name: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) path: String,
}

/// Go programs write what is not there as null.
fn nullable<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

impl File {
    /// Reads a file's text; `yaml` decides how.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &[u8], yaml: bool) -> Result<Self, String> {
        let file: Self = if yaml {
            let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
            // As Go's YAML reader takes file modes.
            let options = serde_saphyr::options! { legacy_octal_numbers: true };
            serde_saphyr::from_str_with_options(text, options)
                .map_err(|error| error.without_snippet().to_string())?
        } else {
            serde_json::from_slice(text).map_err(|error| error.to_string())?
        };
        file.check()?;
        Ok(file)
    }

    fn check(&self) -> Result<(), String> {
        let mut numbers = self.cdi_version.split('.').map(|number| number.parse::<u32>().ok());
        let version = numbers.next().flatten().zip(numbers.next().flatten());
        if version.is_none_or(|version| !VERSIONS.contains(&version)) {
            return Err(format!("cdiVersion {:?}: crisp knows 0.3 to 1.1", self.cdi_version));
        }
        check_kind(&self.kind)?;
        for (index, device) in self.devices.iter().enumerate() {
            check_device(&device.name)?;
            if self.devices.iter().take(index).any(|other| other.name == device.name) {
                return Err(format!("device {:?} is there twice", device.name));
            }
        }
        Ok(())
    }
}
