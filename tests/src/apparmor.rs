//! AppArmor profiles of a test's own, and the label that a process lives under.
//!
//! Must not know: who is confined.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::place;

/// A loaded profile; unloaded when dropped.
#[derive(Debug)]
pub struct Profile {
    /// Its name.
    pub name: String,
    text: String,
}

impl Profile {
    /// Loads a profile that allows files, network, capabilities and signals, and then what `rules` say.
    ///
    /// # Errors
    /// The parser refuses it.
    pub fn load(name: &str, rules: &str) -> Result<Self> {
        let text = format!(
            "profile {name} flags=(attach_disconnected) {{ file, network, capability, signal, ptrace, {rules} }}\n"
        );
        parse("--replace", &text)?;
        Ok(Self { name: name.to_owned(), text })
    }

    /// Unloads the profile of this name, whoever has loaded it.
    ///
    /// # Errors
    /// It is not loaded.
    pub fn unload(name: &str) -> Result<()> {
        parse("--remove", &format!("profile {name} {{ }}\n"))
    }
}

impl Drop for Profile {
    /// A profile that stays would only be in the way of a test with one of the same name.
    fn drop(&mut self) {
        let _ = parse("--remove", &self.text);
    }
}

fn parse(verb: &str, text: &str) -> Result<()> {
    let program = place::apparmor_parser().context("no apparmor_parser")?;
    let mut child = Command::new(program)
        .args([verb, "--skip-cache"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start apparmor_parser")?;
    child.stdin.take().context("no pipe")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "apparmor_parser {verb}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The label of a process, as `name (mode)` or `unconfined`.
///
/// # Errors
/// It does not run, or the kernel has no AppArmor.
pub fn label(pid: i32) -> Result<String> {
    let path = format!("/proc/{pid}/attr/apparmor/current");
    Ok(fs::read_to_string(&path).with_context(|| format!("read {path}"))?.trim_end().to_owned())
}
