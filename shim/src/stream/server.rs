//! The streaming server: its socket, and HTTP as far as the upgrade.
//!
//! A connection carries one request. Until that has shown a good token it is a stranger's: it has seconds, and when there
//! are many of its kind the one that came first has to go. Must not know: what a session does.

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    Asked, Streams,
    negotiate::{self, Agreed, Refusal},
    session::{self, Limits},
    strangers::{Stranger, Strangers},
    tls,
    transport::Peer,
};
use crate::{
    config::StreamConfig,
    error::{RequestError, Stage},
    node::Node,
};

/// How long a client may take to make its request.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);
/// Why a connection ends that has not shown a token.
const UNWANTED: &str = "many strangers have come after it";
/// Largest head of a request.
const HEAD_BYTES: usize = 16 << 10;
/// A client that is gone without a word is noticed after about two minutes, if nothing is on its way to it; then by the
/// kernel's retries. TCP_USER_TIMEOUT is no help: it also ends who is there and takes nothing for that long.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);

/// A bound socket that nobody serves yet.
#[derive(Debug)]
pub(super) struct Door {
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
}

impl Door {
    /// Binds the configured address; gives what URLs begin with.
    ///
    /// # Errors
    /// The address or the port cannot be had, or a file of TLS cannot be used.
    pub(super) fn open(config: &StreamConfig) -> Result<(Self, String), RequestError> {
        let tls = match config.tls_certificate.as_str() {
            "" => None,
            file => Some(tls::settings(Path::new(file), Path::new(&config.tls_key))?),
        };
        let address = config.address.parse().stage(format_args!("stream.address {:?}", config.address))?;
        let address = SocketAddr::new(address, config.port);
        let listener =
            TcpListener::bind(address).stage(format_args!("stream.address: listen on {address}"))?;
        let real = listener.local_addr().stage("stream.address")?;
        listener.set_nonblocking(true).stage("stream.address")?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        Ok((Self { listener, tls }, format!("{scheme}://{real}")))
    }

    /// Serves until the streams are closed.
    ///
    /// # Errors
    /// The socket cannot be waited on.
    pub(super) async fn serve(self, node: Arc<Node>, streams: Arc<Streams>) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let strangers = Arc::new(Strangers::default());
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = streams.ending.cancelled() => return Ok(()),
            };
            match accepted {
                Ok((socket, _)) => {
                    let (stranger, unwanted) = strangers.welcome();
                    let visit = Visit { node: node.clone(), streams: streams.clone(), stranger, unwanted };
                    let tls = self.tls.clone().map(TlsAcceptor::from);
                    streams.tasks.spawn(async move {
                        if let Err(error) = Box::pin(visit.greet(socket, tls)).await {
                            tracing::debug!(error, "streaming: a connection without a session");
                        }
                    });
                }
                // Too many open files: what is open must end before more can be.
                Err(error) => {
                    tracing::warn!(%error, "streaming: accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// One connection.
struct Visit {
    node: Arc<Node>,
    streams: Arc<Streams>,
    stranger: Stranger,
    /// Others have come since, too many.
    unwanted: CancellationToken,
}

type Answer = Response<Full<Bytes>>;

impl Visit {
    async fn greet(self, socket: TcpStream, tls: Option<TlsAcceptor>) -> Result<(), String> {
        let text = |error: &dyn std::error::Error| crate::error::chain(error);
        let _ = socket.set_nodelay(true);
        let _ = SockRef::from(&socket).set_tcp_keepalive(&KEEPALIVE);
        let watched = socket.as_fd().try_clone_to_owned().map_err(|error| text(&error))?;
        match tls {
            None => self.serve(socket, watched).await,
            Some(tls) => {
                let socket = tokio::select! {
                    socket = timeout(REQUEST_PATIENCE, tls.accept(socket)) => socket,
                    () = self.unwanted.cancelled() => return Err(UNWANTED.to_owned()),
                };
                let socket =
                    socket.map_err(|_| "TLS: no handshake in time")?.map_err(|error| text(&error))?;
                self.serve(socket, watched).await
            }
        }
    }

    async fn serve(
        self,
        socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        watched: OwnedFd,
    ) -> Result<(), String> {
        let (ending, unwanted) = (self.streams.ending.clone(), self.unwanted.clone());
        let visit = std::sync::Mutex::new(Some((self, watched)));
        // The first request decides; a second one on the same connection finds nobody.
        let service = service_fn(|request| {
            let visit = visit.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            async move {
                Ok::<_, Infallible>(match visit {
                    Some((visit, watched)) => visit.answer(request, watched),
                    None => refusal(StatusCode::BAD_REQUEST, "one request a connection"),
                })
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_PATIENCE)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(socket), service)
            .with_upgrades();
        tokio::select! {
            served = connection => served.map_err(|error| crate::error::chain(&error)),
            () = ending.cancelled() => Ok(()),
            () = unwanted.cancelled() => Err(UNWANTED.to_owned()),
        }
    }

    /// Answers the request; one that is good has its session begun.
    fn answer(self, mut request: Request<Incoming>, watched: OwnedFd) -> Answer {
        let Some(asked) = self.asked(&request) else {
            return refusal(StatusCode::NOT_FOUND, "no such stream: each URL is good once, for a minute");
        };
        let agreed = match negotiate::agree(asked.kind(), request.headers()) {
            Ok(agreed) => agreed,
            Err(refused) => return refused_by(refused),
        };
        let peer = match Peer::new(watched) {
            Ok(peer) => peer,
            Err(error) => {
                return refusal(StatusCode::INTERNAL_SERVER_ERROR, &format!("watch the connection: {error}"));
            }
        };
        let answer = switch(&agreed);
        let upgrade = hyper::upgrade::on(&mut request);
        let Visit { node, streams, stranger, .. } = self;
        drop(stranger);
        let tasks = streams.tasks.clone();
        tasks.spawn(async move {
            match upgrade.await {
                Ok(upgraded) => {
                    let idle = Duration::from_secs(node.config.stream.idle_timeout_seconds);
                    let limits = Limits { idle, ending: streams.ending.clone() };
                    let socket = TokioIo::new(upgraded);
                    Box::pin(session::run(&node, asked, &agreed, socket, peer, limits)).await;
                }
                Err(error) => tracing::debug!(%error, "streaming: the client has gone before its session"),
            }
        });
        answer
    }

    /// What the token in the path stands for.
    fn asked(&self, request: &Request<Incoming>) -> Option<Asked> {
        if !matches!(*request.method(), Method::GET | Method::POST) {
            return None;
        }
        let (kind, token) = request.uri().path().strip_prefix('/')?.split_once('/')?;
        let asked = self.streams.tokens.take(token)?;
        (asked.kind().path() == kind).then_some(asked)
    }
}

fn refusal(status: StatusCode, text: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn refused_by(refused: Refusal) -> Answer {
    let mut answer = refusal(refused.status, &refused.text);
    if let Some((name, value)) = refused.header
        && let Ok(value) = HeaderValue::from_str(&value)
    {
        answer.headers_mut().insert(name, value);
    }
    answer
}

fn switch(agreed: &Agreed) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    match agreed {
        Agreed::Spdy(version) => {
            headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
            headers.insert("x-stream-protocol-version", HeaderValue::from_static(version));
        }
        Agreed::WebSocket { protocol, accept } => {
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            if let Ok(accept) = HeaderValue::from_str(accept) {
                headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
            }
            if let Some(protocol) = protocol {
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
            }
        }
    }
    answer
}
