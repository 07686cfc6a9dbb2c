//! What a program is given: its arguments and its environment, from the request and the image.

use std::collections::HashMap;

use crisp_image::ImageConfig;
use crisp_proto::runtime::v1 as cri;

use super::spec::SpecInput;
use crate::error::RequestError;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a program on a terminal may expect of it.
const TERM: &str = "xterm";

/// Most bytes of arguments and environment. execve(2) takes a quarter of the stack's limit, 2 MiB as a rule; what is below
/// this and still too much is the kernel's to say, at Start.
const EXEC_BYTES: usize = 3 << 20;

/// What no kernel would take is refused before anything is made of it.
pub(super) fn check_size(args: &[String], env: &[String]) -> Result<(), RequestError> {
    let bytes: usize = args.iter().chain(env).map(|text| text.len() + 1).sum();
    if bytes <= EXEC_BYTES {
        return Ok(());
    }
    Err(RequestError::invalid(format!(
        "command, args and envs: argument list too long: {bytes} bytes, at most {EXEC_BYTES}"
    )))
}

/// CRI: a command without arguments drops the image's arguments, too.
pub(super) fn args(config: &cri::ContainerConfig, image: &ImageConfig) -> Result<Vec<String>, RequestError> {
    let args = match (config.command.is_empty(), config.args.is_empty()) {
        (true, true) => [image.entrypoint.as_slice(), &image.cmd].concat(),
        (true, false) => [image.entrypoint.as_slice(), &config.args].concat(),
        (false, _) => [config.command.as_slice(), &config.args].concat(),
    };
    if args.first().is_none_or(String::is_empty) {
        return Err(RequestError::invalid(
            "no command specified: neither the container nor its image has one",
        ));
    }
    if args.iter().any(|arg| arg.contains('\0')) {
        return Err(RequestError::invalid("command or args: a NUL byte cannot be passed to a program"));
    }
    Ok(args)
}

/// Later ones win, each key keeps its first place. `HOME` is added last, when nobody has set it.
pub(super) fn env(input: &SpecInput<'_>) -> Result<Vec<String>, RequestError> {
    let mut list: Vec<(String, String)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut set = |key: &str, value: &str| match places.get(key) {
        Some(place) => value.clone_into(&mut list[*place].1),
        None => {
            places.insert(key.to_owned(), list.len());
            list.push((key.to_owned(), value.to_owned()));
        }
    };
    if let Some((key, value)) = PATH.split_once('=') {
        set(key, value);
    }
    if input.config.tty {
        set("TERM", TERM);
    }
    set("HOSTNAME", input.hostname);
    for entry in &input.image.env {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        check_env(key, value)?;
        set(key, value);
    }
    for entry in &input.config.envs {
        // A spec has text only; see `restore_binary`.
        let value = String::from_utf8_lossy(&entry.value);
        check_env(&entry.key, &value)?;
        set(&entry.key, &value);
    }
    for (key, value) in &input.cdi.env {
        check_env(key, value)?;
        set(key, value);
    }
    if !places.contains_key("HOME") {
        list.push(("HOME".to_owned(), input.home.to_owned()));
    }
    Ok(list.into_iter().map(|(key, value)| format!("{key}={value}")).collect())
}

/// Puts the bytes of those values that are no UTF-8 (CRI: `KeyValue.value` is bytes) where a spec, which has text only, has
/// them with replacement characters.
pub fn restore_binary(config: &cri::ContainerConfig, env: &mut [Vec<u8>]) {
    for entry in config.envs.iter().filter(|entry| std::str::from_utf8(&entry.value).is_err()) {
        let text = format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value)).into_bytes();
        if let Some(found) = env.iter_mut().find(|variable| **variable == text) {
            *found = [entry.key.as_bytes(), b"=", &entry.value].concat();
        }
    }
}

fn check_env(key: &str, value: &str) -> Result<(), RequestError> {
    if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
        return Err(RequestError::invalid(format!("envs: {key:?} is not an environment variable")));
    }
    Ok(())
}
