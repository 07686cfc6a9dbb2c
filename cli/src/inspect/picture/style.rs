//! The colours and measures of the picture. A colour says whose something is; they can be told apart by people who see no
//! difference between red and green, and words say the same everywhere.

use super::canvas::{Ink, Paint};

pub(super) const TEXT: Ink = Ink("#1f2328");
pub(super) const SOFT: Ink = Ink("#57606a");
pub(super) const HOST_INK: Ink = Ink("#4b5058");
pub(super) const POD_INK: Ink = Ink("#004f80");
pub(super) const OWN_INK: Ink = Ink("#8a4300");
pub(super) const FILES_INK: Ink = Ink("#005a43");
/// Of lines that join a container and what it sees.
pub(super) const JOINT: Ink = Ink("#009e73");
/// Of lines between the host's and the pod that uses it.
pub(super) const HOST_JOINT: Ink = Ink("#6e7681");

const fn paint(fill: &'static str, edge: &'static str, edge_width: i32, round: i32) -> Paint {
    Paint { fill, edge, edge_width, dashed: false, round }
}

pub(super) const GROUND: Paint = paint("#ffffff", "none", 0, 10);
pub(super) const HOST: Paint = paint("#eff1f3", "#6e7681", 2, 10);
pub(super) const POD: Paint = paint("#ffffff", "#0072b2", 2, 10);
pub(super) const SANDBOX: Paint = paint("#ebf5fc", "#0072b2", 1, 8);
pub(super) const CONTAINER: Paint = paint("#ffffff", "#1f2328", 2, 8);
pub(super) const IDLE: Paint = Paint { dashed: true, ..paint("#f6f8fa", "#6e7681", 1, 8) };

/// What belongs to the host, to all containers of the pod, to one container; files that several see.
pub(super) const OF_HOST: Paint = paint("#dde1e6", "#6e7681", 1, 6);
pub(super) const OF_POD: Paint = paint("#c5e2f7", "#0072b2", 1, 6);
pub(super) const OF_ONE: Paint = paint("#fff1dc", "#e69f00", 1, 6);
pub(super) const OF_SOME: Paint = paint("#ddf3ea", "#009e73", 1, 6);
pub(super) const PLACE: Paint = paint("#ffffff", "#009e73", 1, 4);

/// What may be used, and how much of it is.
pub(super) const ALLOWED: Paint = paint("#e4e7eb", "none", 0, 4);
pub(super) const USED: Paint = paint("#5b6570", "none", 0, 4);
pub(super) const UNLIMITED: Paint = Paint { dashed: true, ..paint("none", "#8c959f", 1, 4) };

/// Between the edge of the picture and the host.
pub(super) const MARGIN: i32 = 20;
/// Inside of the host, the pod and the sandbox.
pub(super) const PAD: i32 = 15;
/// Inside of smaller boxes.
pub(super) const INNER: i32 = 12;
/// Between boxes side by side.
pub(super) const GAP: i32 = 14;
