//! The directories of spec files. A later directory wins over an earlier one; two files of one directory that describe
//! the same device contradict each other.
//!
//! Who can write to these directories is root on the node anyway. Still no file is read that lies elsewhere, is none, or
//! is larger than any real one: a look-up runs for whoever may create containers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crisp_sys::{Errno, path::Root};

use super::{
    name::Name,
    spec::{Device, File},
};
use crate::error::chain;

/// Largest spec file, bytes.
const FILE_BYTES: u64 = 4 << 20;
/// Most spec files of one directory.
const FILES: usize = 4096;

/// All spec files, as they are now.
#[derive(Debug)]
pub(super) struct Registry {
    /// In the order of the configuration.
    directories: Vec<(PathBuf, Vec<(PathBuf, File)>)>,
    /// What is wrong with files that cannot be used.
    problems: Vec<String>,
}

/// A device and the file it is in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<'a> {
    pub(super) path: &'a Path,
    pub(super) file: &'a File,
    pub(super) device: &'a Device,
}

impl Registry {
    /// Reads all files. One that cannot be used is noted: the devices of the others are there.
    pub(super) fn read(directories: &[String]) -> Self {
        let mut registry = Self { directories: Vec::new(), problems: Vec::new() };
        for directory in directories.iter().map(Path::new) {
            let files = registry.read_directory(directory).unwrap_or_else(|problem| {
                registry.problems.push(format!("{}: {problem}", directory.display()));
                Vec::new()
            });
            registry.directories.push((directory.to_owned(), files));
        }
        registry
    }

    fn read_directory(&mut self, directory: &Path) -> Result<Vec<(PathBuf, File)>, String> {
        // Links are followed inside the directory only, which is how config maps are laid out.
        let root = match Root::open(directory) {
            Ok(root) => root,
            Err(error) if error.errno == Errno::ENOENT => return Ok(Vec::new()),
            Err(error) => return Err(error.to_string()),
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(directory).map_err(|error| error.to_string())? {
            let name = PathBuf::from(entry.map_err(|error| error.to_string())?.file_name());
            if name.extension().is_some_and(|end| end == "json" || end == "yaml") {
                names.push(name);
            }
            if names.len() > FILES {
                return Err(format!("more than {FILES} spec files"));
            }
        }
        names.sort();
        let mut files = Vec::new();
        for name in names {
            let yaml = name.extension().is_some_and(|end| end == "yaml");
            let read = root.read_file(&name, FILE_BYTES).map_err(|error| chain(&error));
            match read.and_then(|text| File::parse(&text, yaml)) {
                Ok(file) => files.push((directory.join(name), file)),
                Err(problem) => {
                    let path = directory.join(name);
                    tracing::warn!(file = %path.display(), problem, "CDI spec file cannot be used");
                    self.problems.push(format!("{}: {problem}", path.display()));
                }
            }
        }
        Ok(files)
    }

    /// The device of a name.
    ///
    /// # Errors
    /// There is none, or two files of the same directory have it.
    pub(super) fn find(&self, name: &Name) -> Result<Found<'_>, String> {
        for (_, files) in self.directories.iter().rev() {
            let mut found =
                files.iter().filter(|(_, file)| file.kind == name.kind).filter_map(|(path, file)| {
                    let device = file.devices.iter().find(|device| device.name == name.device)?;
                    Some(Found { path, file, device })
                });
            match (found.next(), found.next()) {
                (Some(one), None) => return Ok(one),
                (Some(one), Some(other)) => {
                    return Err(format!(
                        "both {} and {} describe it",
                        one.path.display(),
                        other.path.display()
                    ));
                }
                (None, _) => {}
            }
        }
        Err(self.missing())
    }

    fn missing(&self) -> String {
        let places: Vec<_> = self.directories.iter().map(|(path, _)| path.display().to_string()).collect();
        let mut text = match places.as_slice() {
            [] => "container.cdi_spec_dirs is empty".to_owned(),
            places => format!("no spec file in {} describes it", places.join(", ")),
        };
        if !self.problems.is_empty() {
            text.push_str(&format!("; not usable: {}", self.problems.join("; ")));
        }
        text
    }
}
