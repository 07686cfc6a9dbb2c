//! Images that a test builds for itself.

use anyhow::{Context, Result};
use crisp_proto::runtime::v1 as cri;

use super::Node;
use crate::build::Build;

impl Node {
    /// Builds an image and imports it as `name`. All nodes of a run share their images, so the test has to take it away
    /// again ([`Node::remove_image`]).
    ///
    /// # Errors
    /// It cannot be built, or is refused.
    pub fn build_image(&self, name: &str, build: Build) -> Result<()> {
        let layout = tempfile::Builder::new().prefix("image-").tempdir_in(self.folder())?;
        build.write(name, layout.path())?;
        self.crisp(&["import", &layout.path().display().to_string()])?.ok()?;
        self.cri().image_id(name)?.with_context(|| format!("{name} is not there after its import"))?;
        Ok(())
    }

    /// Removes an image.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn remove_image(&self, name: &str) -> Result<()> {
        self.cri().remove_image(cri::RemoveImageRequest { image: Some(crate::cri::image(name)) })?;
        Ok(())
    }
}
