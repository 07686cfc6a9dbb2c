//! Compiles the protobuf files to Rust. protox is a compiler in Rust, so no protoc has to be installed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    for file in ["api.proto", "admin.proto"] {
        println!("cargo::rerun-if-changed={file}");
    }
    let files = protox::compile(["api.proto", "admin.proto"], ["."])?;
    // The test that compares the compiled interface with the published one reads this file.
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out.join("descriptors.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .build_transport(false)
        .emit_rerun_if_changed(false)
        // The daemon keeps requests in its records, and shows them in verbose answers.
        .message_attribute(".runtime.v1", "#[derive(serde::Serialize, serde::Deserialize)]")
        .message_attribute(".runtime.v1", "#[serde(default)]")
        .compile_fds(files)?;
    Ok(())
}
