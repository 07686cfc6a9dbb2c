//! gRPC calls of any method with any bytes as the message, for clients that do not keep to the protocol of CRI.
//!
//! Must not know: what the bytes mean.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use prost::bytes::{Buf, BufMut};
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::cri::{Reply, channel};

/// Largest answer that is taken.
const ANSWER_BYTES: usize = 64 << 20;

/// A method of the daemon's services.
#[derive(Clone, Debug)]
pub struct Method {
    /// `/package.Service/Method`.
    pub path: String,
    /// Its name alone.
    pub name: String,
    /// Whether it answers with a stream.
    pub streams: bool,
}

/// Every method of CRI v1, from the facts in tests/cri-v1.36.json.
///
/// # Errors
/// The file is not what it should be.
pub fn methods() -> Result<Vec<Method>> {
    let facts: serde_json::Value = serde_json::from_str(include_str!("../cri-v1.36.json"))?;
    let mut found = Vec::new();
    for service in facts["services"].as_array().context("services")? {
        let service_name = service["name"].as_str().context("name of a service")?;
        for method in service["methods"].as_array().context("methods")? {
            let name = method["name"].as_str().context("name of a method")?.to_owned();
            let streams = method["server_streaming"].as_bool().unwrap_or(false);
            found.push(Method { path: format!("/runtime.v1.{service_name}/{name}"), name, streams });
        }
    }
    Ok(found)
}

/// A client that says what it is told to.
#[derive(Debug)]
pub struct Caller {
    executor: Runtime,
    channel: Channel,
}

impl Caller {
    /// A client of the daemon behind `socket`.
    ///
    /// # Errors
    /// No executor can be made.
    pub fn new(socket: &Path) -> Result<Self> {
        let executor = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let entered = executor.enter();
        let channel = channel(socket);
        drop(entered);
        Ok(Self { executor, channel })
    }

    /// Calls a method and gives the messages of its answer; a stream is ended after its first message, or before one
    /// has come when `limit` is over.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn call(&self, path: &str, message: Vec<u8>, limit: Option<Duration>) -> Reply<Vec<Vec<u8>>> {
        self.send(path, message, limit, false)
    }

    /// [`Caller::call`] with a message that is compressed by gzip.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn call_compressed(&self, path: &str, message: Vec<u8>) -> Reply<Vec<Vec<u8>>> {
        self.send(path, message, None, true)
    }

    fn send(&self, path: &str, message: Vec<u8>, limit: Option<Duration>, gzip: bool) -> Reply<Vec<Vec<u8>>> {
        let path = PathAndQuery::try_from(path).map_err(|error| Status::internal(error.to_string()))?;
        let mut client = Grpc::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES);
        if gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        let mut request = Request::new(message);
        if let Some(limit) = limit {
            request.set_timeout(limit);
        }
        self.executor.block_on(async {
            client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let mut stream = client.server_streaming(request, path, Bytes).await?.into_inner();
            let mut messages = Vec::new();
            let first = async {
                while let Some(message) = stream.message().await? {
                    messages.push(message);
                }
                Ok::<_, Status>(())
            };
            match limit {
                // An endless stream has answered by being opened.
                Some(limit) => tokio::time::timeout(limit, first).await.unwrap_or(Ok(()))?,
                None => first.await?,
            }
            Ok(messages)
        })
    }
}

/// Messages as the bytes that they are.
#[derive(Clone, Copy, Debug)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; from.remaining()];
        from.copy_to_slice(&mut item);
        Ok(Some(item))
    }
}
