//! `crisp pull`, and pulling for `crisp play`: with the progress of each layer where the runtime tells it.

use std::{collections::HashMap, io::IsTerminal};

use anyhow::{Context, Result, bail};
use clap::Args;
use crisp_proto::{
    admin::v1::{LayerProgress, PullRequest, layer_progress::State},
    runtime::v1::{AuthConfig, ImageSpec, PodSandboxConfig, PullImageRequest},
};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tonic::Code;

use crate::endpoint::{Asked, Clients, code};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Reference of the image
    image: String,
    /// Credentials for the registry
    #[arg(long, value_name = "USER:PASSWORD", env = "CRISP_PULL_CREDS", hide_env_values = true)]
    creds: Option<String>,
}

pub(crate) async fn run(endpoint: &str, arguments: Arguments) -> Result<()> {
    let auth = credentials(arguments.creds.as_deref())?;
    let clients = Clients::connect(endpoint).await?;
    let id = pull(&clients, &arguments.image, auth, None, &MultiProgress::new()).await?;
    println!("{id}");
    Ok(())
}

/// What `--creds` says.
pub(super) fn credentials(text: Option<&str>) -> Result<Option<AuthConfig>> {
    Ok(match text.map(|creds| creds.split_once(':')) {
        None => None,
        Some(Some((user, password))) => {
            Some(AuthConfig { username: user.into(), password: password.into(), ..Default::default() })
        }
        Some(None) => bail!("--creds: not of the form USER:PASSWORD"),
    })
}

/// Fetches an image and answers its id. Progress goes to `bars` when standard error is a terminal.
pub(crate) async fn pull(
    clients: &Clients,
    image: &str,
    auth: Option<AuthConfig>,
    pod: Option<&PodSandboxConfig>,
    bars: &MultiProgress,
) -> Result<String> {
    let request = PullRequest { image: image.to_owned(), auth: auth.clone() };
    let what = || format!("pull {image}");
    match clients.admin.clone().pull(request).await.asked(what()) {
        Ok(mut stream) => {
            let mut view = View::new(bars);
            loop {
                match stream.message().await.map(tonic::Response::new).asked(what())? {
                    Some(message) if !message.image_id.is_empty() => return Ok(message.image_id),
                    Some(message) => message.layers.iter().for_each(|layer| view.show(layer)),
                    None => bail!("{}: the runtime ended without an answer", what()),
                }
            }
        }
        // Another runtime than crisp: no progress then.
        Err(error) if code(&error) == Some(Code::Unimplemented) => {
            let spec = ImageSpec { image: image.to_owned(), ..Default::default() };
            let request = PullImageRequest { image: Some(spec), auth, sandbox_config: pod.cloned() };
            Ok(clients.image.clone().pull_image(request).await.asked(what())?.image_ref)
        }
        Err(error) => Err(error),
    }
}

/// One bar for each layer that is being fetched. On something that is no terminal, nothing.
struct View<'a> {
    bars: &'a MultiProgress,
    layers: HashMap<String, ProgressBar>,
}

impl<'a> View<'a> {
    fn new(bars: &'a MultiProgress) -> Self {
        if !std::io::stderr().is_terminal() {
            bars.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        Self { bars, layers: HashMap::new() }
    }

    fn show(&mut self, layer: &LayerProgress) {
        let state = layer.state();
        if matches!(state, State::Waiting | State::Present) && !self.layers.contains_key(&layer.digest) {
            return;
        }
        let bar = self.layers.entry(layer.digest.clone()).or_insert_with(|| {
            let bar = self.bars.add(ProgressBar::new(layer.total_bytes));
            if let Ok(style) = style() {
                bar.set_style(style);
            }
            bar.set_prefix(layer.digest.trim_start_matches("sha256:").chars().take(12).collect::<String>());
            bar
        });
        bar.set_length(layer.total_bytes);
        bar.set_position(layer.done_bytes);
        match state {
            State::Done | State::Present => bar.finish_with_message("done"),
            State::Unpacking => bar.set_message("unpacking"),
            State::Downloading | State::Waiting => bar.set_message(""),
        }
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        for bar in self.layers.values() {
            bar.finish_and_clear();
        }
    }
}

fn style() -> Result<ProgressStyle> {
    ProgressStyle::with_template("{prefix} {wide_bar} {bytes:>10} of {total_bytes:>10}  {msg:9}")
        .context("progress style")
}
