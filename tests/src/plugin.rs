//! A CNI plugin of the tests' own: notes each call, and does what a file or seeded dice say. The test program itself is
//! the plugin, where it is called by a name that begins with [`NAME`].
//!
//! ```text
//!  <folder>/calls          a line a call: <verb> <plugin> <container> <namespace or -> <what it did>
//!  <folder>/<plugin>.<VERB>  what to do, a line: see `Fate::of`
//!  <folder>/held/<plugin>:<container>   made by the first ADD, removed by a DEL that succeeds
//! ```
//!
//! Must not know: what is tested with it.

use std::env;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::random::Random;

/// Beginning of the names under which the test program is a plugin.
pub const NAME: &str = "crisp-test-plugin";
/// Key of a plugin's configuration that holds its folder.
const FOLDER: &str = "crispTestFolder";
/// Key of a plugin's configuration that holds the seed of its dice, as text; without it there are none.
const SEED: &str = "crispTestSeed";

/// A folder of plugins of the tests' own.
#[derive(Debug)]
pub struct Plugins {
    folder: PathBuf,
}

impl Plugins {
    /// Makes the folders of plugins called `names`, behind [`NAME`], below `folder`.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn install(folder: &Path, names: &[&str]) -> Result<Self> {
        let plugins = Self { folder: folder.to_owned() };
        for made in [plugins.bin(), plugins.folder.join("held")] {
            fs::create_dir_all(made)?;
        }
        let own = env::current_exe().context("where the test program is")?;
        let mut first: Option<PathBuf> = None;
        for name in names {
            let path = plugins.bin().join(format!("{NAME}-{name}"));
            match &first {
                None => drop(fs::copy(&own, &path).context("copy the test program")?),
                Some(first) => fs::hard_link(first, &path)?,
            }
            first.get_or_insert(path);
        }
        Ok(plugins)
    }

    /// Where the programs are.
    pub fn bin(&self) -> PathBuf {
        self.folder.join("bin")
    }

    /// The configuration of the plugin `name`; with a seed, dice say what it does.
    pub fn config(&self, name: &str, seed: Option<u64>) -> Value {
        let mut config = json!({ "type": format!("{NAME}-{name}"), FOLDER: self.folder });
        if let Some(seed) = seed {
            config[SEED] = json!(seed.to_string());
        }
        config
    }

    /// Has the plugin `name` do something at each call of `verb`; `None`: what it does anyway.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn tell(&self, name: &str, verb: &str, what: Option<&str>) -> Result<()> {
        let path = self.folder.join(format!("{NAME}-{name}.{verb}"));
        match what {
            Some(what) => Ok(fs::write(path, what)?),
            None => Ok(fs::remove_file(path)?),
        }
    }

    /// The calls so far, as the module says.
    pub fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// What was made by ADD and not taken away by DEL.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn held(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(self.folder.join("held"))?;
        Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    }
}

/// What a call comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Well,
    /// `error CODE TEXT`
    Error(u64, String),
    /// `garbage CODE`: no JSON.
    Garbage(u8),
    /// `address TEXT`: a result with that address.
    Address(String),
    /// `flood`: more output than anybody takes.
    Flood,
    /// `die`: killed by itself.
    Die,
    /// `hang`: never ends; a child of a child holds the standard output.
    Hang,
    /// `wait FILE`: well, once that file is there.
    Wait(PathBuf),
}

impl Fate {
    fn of(text: &str) -> Self {
        let mut words = text.splitn(3, ' ');
        let (word, second, third) = (words.next(), words.next().unwrap_or(""), words.next().unwrap_or(""));
        match word {
            Some("error") => Self::Error(second.parse().unwrap_or(999), third.to_owned()),
            Some("garbage") => Self::Garbage(second.parse().unwrap_or(0)),
            Some("address") => Self::Address(second.to_owned()),
            Some("flood") => Self::Flood,
            Some("die") => Self::Die,
            Some("hang") => Self::Hang,
            Some("wait") => Self::Wait(second.into()),
            _ => Self::Well,
        }
    }

    /// By dice that have been thrown `thrown` times.
    fn rolled(seed: u64, thrown: u64) -> Self {
        match Random::seeded(seed ^ thrown.wrapping_mul(0x9e37_79b9_7f4a_7c15)).below(100) {
            0..70 => Self::Well,
            70..78 => Self::Error(7, "the dice say so".to_owned()),
            78..84 => Self::Garbage(0),
            84..89 => Self::Garbage(3),
            89..92 => Self::Address("x".to_owned()),
            92..94 => Self::Flood,
            94..99 => Self::Die,
            _ => Self::Hang,
        }
    }
}

/// Whether this process is a plugin.
pub fn called() -> bool {
    let name = env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.starts_with(NAME) && env::var_os("CNI_COMMAND").is_some()
}

/// Is the plugin.
pub fn run() -> ExitCode {
    match answer() {
        Ok(code) => code,
        Err(error) => {
            say(&json!({ "code": 999, "msg": format!("{error:#}") }));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "how a plugin answers")]
fn say(value: &Value) {
    println!("{value}");
}

fn answer() -> Result<ExitCode> {
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let program = PathBuf::from(env::args_os().next().context("no name")?);
    let name = program.file_name().context("no name")?.to_string_lossy().into_owned();
    let (verb, container) = (variable("CNI_COMMAND"), variable("CNI_CONTAINERID"));
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input)?;
    let config: Value = serde_json::from_str(&input).context("configuration")?;
    let folder = PathBuf::from(config[FOLDER].as_str().context("no folder in the configuration")?);
    let calls = folder.join("calls");
    let seed: Option<u64> = config[SEED].as_str().and_then(|text| text.parse().ok());
    let fate = match (fs::read_to_string(folder.join(format!("{name}.{verb}"))), seed) {
        (Ok(text), _) => Fate::of(text.trim()),
        (Err(_), Some(seed)) => Fate::rolled(seed, fs::metadata(&calls).map_or(0, |meta| meta.len())),
        (Err(_), None) => Fate::Well,
    };
    let netns = if variable("CNI_NETNS").is_empty() { "-".to_owned() } else { variable("CNI_NETNS") };
    let line = format!("{verb} {name} {container} {netns} {fate:?}\n");
    File::options().create(true).append(true).open(&calls)?.write_all(line.as_bytes())?;
    fs::write(folder.join(format!("{name}.{verb}.input")), &input)?;
    let held = folder.join("held").join(format!("{name}:{container}"));
    if verb == "ADD" {
        File::create(&held)?;
    }
    Ok(meet(&fate, &verb, &held, &config))
}

fn meet(fate: &Fate, verb: &str, held: &Path, config: &Value) -> ExitCode {
    // Whoever ends with 0 says that DEL has succeeded, whatever it prints.
    if verb == "DEL" && matches!(fate, Fate::Garbage(0) | Fate::Address(_)) {
        let _ = fs::remove_file(held);
    }
    match fate {
        Fate::Well => well(verb, held, config),
        Fate::Error(code, text) => {
            say(&json!({ "cniVersion": config["cniVersion"], "code": code, "msg": text }));
            return ExitCode::FAILURE;
        }
        Fate::Garbage(code) => {
            say(&json!("this is no result"));
            return ExitCode::from(*code);
        }
        Fate::Address(text) => {
            say(&json!({ "cniVersion": config["cniVersion"], "ips": [{ "address": text }] }));
        }
        Fate::Flood => loop {
            say(&json!("x".repeat(1 << 16)));
        },
        Fate::Die => {
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        }
        Fate::Hang => hang(),
        Fate::Wait(path) => {
            while !path.exists() {
                std::thread::yield_now();
            }
            well(verb, held, config);
        }
    }
    ExitCode::SUCCESS
}

fn well(verb: &str, held: &Path, config: &Value) {
    match verb {
        "ADD" => {
            let own = json!({ "cniVersion": config["cniVersion"], "ips": [] });
            say(config.get("prevResult").unwrap_or(&own));
        }
        "DEL" => {
            let _ = fs::remove_file(held);
        }
        "VERSION" => say(&json!({ "cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"] })),
        _ => {}
    }
}

/// Leaves a session of its own with a process that nobody is the parent of, and waits for ever.
fn hang() {
    let mut shell = Command::new("setsid");
    shell.args(["sh", "-c", "sleep 100000 & exit"]).stdin(Stdio::null());
    if let Ok(mut child) = shell.spawn() {
        let _ = child.wait();
    }
    let error = Command::new("sleep").arg("100000").exec();
    say(&json!({ "code": 999, "msg": error.to_string() }));
}
