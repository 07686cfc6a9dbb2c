//! crisp-netns
