//! `crisp images check`: whether layers are as their digests say, one line each as it is known.

use std::collections::HashMap;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use crisp_proto::admin::v1::{
    CheckImagesRequest, CheckedLayer, ImageLayersRequest, checked_layer::Condition,
};

use super::pull::credentials;
use crate::endpoint::{Asked, Clients};
use crate::text;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name or id of one image; all images without
    image: Option<String>,
    /// Fetch layers that are not as they should be again, and mend them under the containers that use them
    #[arg(long)]
    heal: bool,
    /// Credentials for the registry
    #[arg(long, value_name = "USER:PASSWORD", env = "CRISP_PULL_CREDS", hide_env_values = true)]
    creds: Option<String>,
}

/// Fails when a layer is damaged in the end.
pub(crate) async fn run(endpoint: &str, arguments: Arguments) -> Result<ExitCode> {
    let clients = Clients::connect(endpoint).await?;
    let known =
        clients.admin.clone().image_layers(ImageLayersRequest::default()).await.asked("list layers")?;
    let names: HashMap<String, String> = known
        .images
        .into_iter()
        .map(|image| (image.id.clone(), image.names.into_iter().next().unwrap_or(image.id)))
        .collect();
    let request = CheckImagesRequest {
        image: arguments.image.unwrap_or_default(),
        heal: arguments.heal,
        auth: credentials(arguments.creds.as_deref())?,
    };
    let mut stream = clients.admin.clone().check_images(request).await.asked("check images")?;
    let (mut layers, mut damaged) = (0, 0);
    while let Some(layer) = stream.message().await.map(tonic::Response::new).asked("check images")? {
        layers += 1;
        damaged += usize::from(layer.condition() == Condition::Damaged);
        println!("{}", line(&layer, &names));
    }
    println!("{layers} layers, {damaged} damaged");
    Ok(if damaged == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn line(layer: &CheckedLayer, names: &HashMap<String, String>) -> String {
    let word = match layer.condition() {
        Condition::Good => "good",
        Condition::Unknown => "unknown",
        Condition::Damaged => "damaged",
        Condition::Healed => "healed",
    };
    let images: Vec<&str> = layer.images.iter().map(|id| names.get(id).unwrap_or(id).as_str()).collect();
    let mut line = format!("{word:<8} {}  {}", text::short(&layer.diff_id), images.join(" "));
    if !layer.reason.is_empty() {
        line.push_str(&format!("\n    {}", text::harmless(&layer.reason)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_a_layer_is_and_why() {
        let names = HashMap::from([("sha256:1".to_owned(), "a:1".to_owned())]);
        let layer = CheckedLayer {
            chain_id: "sha256:x".to_owned(),
            diff_id: format!("sha256:{}", "ab".repeat(32)),
            images: vec!["sha256:1".to_owned(), "sha256:2".to_owned()],
            condition: Condition::Damaged.into(),
            reason: "\"etc/\u{1b}x\": it is gone".to_owned(),
        };
        let expected = "damaged  abababababab  a:1 sha256:2\n    \"etc/\\u{1b}x\": it is gone";
        assert_eq!(line(&layer, &names), expected);
        let good = CheckedLayer { condition: Condition::Good.into(), reason: String::new(), ..layer };
        assert_eq!(line(&good, &names), "good     abababababab  a:1 sha256:2");
    }
}
