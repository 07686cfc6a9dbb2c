//! The connection to a CRI runtime, and its errors as one line of text.
//!
//! Must not know which command uses it.

use std::{env, fmt, path::PathBuf};

use anyhow::{Context, Result, bail};
use crisp_proto::{
    admin::v1::admin_client::AdminClient,
    runtime::v1::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient},
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

/// Where crisp listens when nothing else is said.
const DEFAULT: &str = "unix:///run/crisp/crisp.sock";

/// Largest message taken, as other CRI clients have it.
const MESSAGE_BYTES: usize = 16 << 20;

/// The endpoint: as given, else from the environment (crictl's variable counts, too), else crisp's own.
pub(crate) fn choose(given: Option<String>) -> String {
    let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
    given
        .or_else(|| set("CRISP_ENDPOINT"))
        .or_else(|| set("CONTAINER_RUNTIME_ENDPOINT"))
        .unwrap_or_else(|| DEFAULT.to_owned())
}

/// Clients of one runtime. They connect again by themselves when the runtime was restarted.
#[derive(Clone, Debug)]
pub(crate) struct Clients {
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    pub(crate) image: ImageServiceClient<Channel>,
    pub(crate) admin: AdminClient<Channel>,
}

impl Clients {
    /// Connects.
    ///
    /// # Errors
    /// The endpoint is no unix socket, or nobody listens there.
    pub(crate) async fn connect(endpoint: &str) -> Result<Self> {
        let path = match endpoint.strip_prefix("unix://").unwrap_or(endpoint) {
            path if path.starts_with('/') => PathBuf::from(path),
            _ => bail!("endpoint {endpoint:?} is not unix:// and an absolute path"),
        };
        // The channel's own error would not say which of the usual reasons it was.
        UnixStream::connect(&path).await.with_context(|| format!("connect to the runtime at {endpoint}"))?;
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES),
            image: ImageServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES),
            admin: AdminClient::new(channel),
        })
    }
}

/// A call that was refused: what was asked, and the runtime's words without gRPC's envelope.
#[derive(Debug)]
pub(crate) struct Refused {
    what: String,
    status: Status,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.status.message(), self.status.code()) {
            ("", code) => write!(f, "{}: {code}", self.what),
            // The runtime may say what was asked by itself.
            (message, _) if message.starts_with(&self.what) => f.write_str(message),
            (message, Code::Unimplemented) => {
                write!(f, "{}: not supported by the runtime: {message}", self.what)
            }
            (message, _) => write!(f, "{}: {message}", self.what),
        }
    }
}

impl std::error::Error for Refused {}

/// Puts what was asked in front of a refusal.
pub(crate) trait Asked<T> {
    /// `what` reads like "stop container web".
    fn asked(self, what: impl fmt::Display) -> Result<T>;
}

impl<T> Asked<T> for std::result::Result<tonic::Response<T>, Status> {
    fn asked(self, what: impl fmt::Display) -> Result<T> {
        match self {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(Refused { what: what.to_string(), status }.into()),
        }
    }
}

/// The gRPC code of a refusal, if the error is one.
pub(crate) fn code(error: &anyhow::Error) -> Option<Code> {
    error.downcast_ref::<Refused>().map(|refused| refused.status.code())
}

/// The runtime's own words of a refusal; of another error all of it.
pub(crate) fn words(error: &anyhow::Error) -> String {
    error
        .downcast_ref::<Refused>()
        .map_or_else(|| format!("{error:#}"), |refused| refused.status.message().to_owned())
}

/// Whether the runtime did not answer at all: it is being restarted, or gone. A status that comes from the runtime has no
/// source; one that the connection makes up has.
pub(crate) fn is_away(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| {
        refused.status.code() == Code::Unavailable || std::error::Error::source(&refused.status).is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_line_without_grpcs_words() {
        let refused: Result<()> =
            Err::<tonic::Response<()>, _>(Status::not_found("pod \"a\" not found")).asked("stop a");
        let error = refused.unwrap_err();
        assert_eq!(error.to_string(), "stop a: pod \"a\" not found");
        assert_eq!((code(&error), words(&error).as_str()), (Some(Code::NotFound), "pod \"a\" not found"));
        let again: Result<()> = Err::<tonic::Response<()>, _>(Status::unknown("stop a: no")).asked("stop a");
        assert_eq!(again.unwrap_err().to_string(), "stop a: no");
        assert_eq!(code(&anyhow::anyhow!("other")), None);
    }

    #[tokio::test]
    async fn an_endpoint_that_is_no_socket_is_named() {
        for endpoint in ["tcp://1.2.3.4:5", "unix://relative.sock", "unix:///no/such.sock"] {
            let error = Clients::connect(endpoint).await.unwrap_err();
            assert!(format!("{error:#}").contains(endpoint), "{error:#}");
        }
    }
}
