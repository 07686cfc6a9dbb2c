//! `crisp version`: of this program and of the runtime it talks to.

use anyhow::Result;
use crisp_proto::runtime::v1::VersionRequest;

use crate::endpoint::{Asked, Clients};

pub(crate) async fn run(endpoint: &str) -> Result<()> {
    println!("crisp    {}", env!("CARGO_PKG_VERSION"));
    let clients = Clients::connect(endpoint).await?;
    let request = VersionRequest { version: "v1".into() };
    let answer = clients.runtime.clone().version(request).await.asked("ask for the version")?;
    println!("runtime  {} {}", answer.runtime_name, answer.runtime_version);
    println!("CRI      {}", answer.runtime_api_version);
    Ok(())
}
