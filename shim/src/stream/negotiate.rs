//! What an HTTP request to a stream's URL asks for: which protocol, which version of it, and what is answered.
//!
//! Pure. Must not know: sockets, tokens.

use hyper::{HeaderMap, StatusCode, header};

use super::websocket;

/// What a URL is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Exec,
    Attach,
    PortForward,
}

impl Kind {
    /// The first part of its URLs' paths.
    pub(super) fn path(self) -> &'static str {
        match self {
            Kind::Exec => "exec",
            Kind::Attach => "attach",
            Kind::PortForward => "portforward",
        }
    }
}

/// Versions of remotecommand over SPDY.
const COMMAND_SPDY: &[&str] =
    &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
/// Versions of remotecommand over WebSocket.
const COMMAND_WEBSOCKET: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
const FORWARD_SPDY: &[&str] = &["portforward.k8s.io"];
/// SPDY as the content of a WebSocket.
const FORWARD_WEBSOCKET: &[&str] = &["SPDY/3.1+portforward.k8s.io"];

const SPDY: &str = "SPDY/3.1";
const VERSION: &str = "x-stream-protocol-version";
const ACCEPTED: &str = "x-accepted-stream-protocol-versions";

/// What was agreed upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Agreed {
    /// SPDY, and the version of what goes over it.
    Spdy(&'static str),
    /// WebSocket.
    WebSocket {
        /// The subprotocol; none was asked for: the first one there was, `channel.k8s.io`.
        protocol: Option<&'static str>,
        /// What proves that the request was understood.
        accept: String,
    },
}

/// Why there is no agreement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) header: Option<(&'static str, String)>,
    pub(super) text: String,
}

fn refuse(status: StatusCode, text: impl Into<String>) -> Refusal {
    Refusal { status, header: None, text: text.into() }
}

/// Decides; the first of the client's versions that is known wins.
pub(super) fn agree(kind: Kind, headers: &HeaderMap) -> Result<Agreed, Refusal> {
    let asks =
        |wanted: &str| words(headers, header::UPGRADE.as_str()).any(|word| word.eq_ignore_ascii_case(wanted));
    let upgrades =
        words(headers, header::CONNECTION.as_str()).any(|word| word.eq_ignore_ascii_case("upgrade"));
    match (upgrades, asks("websocket"), asks(SPDY)) {
        (true, true, _) => websocket(kind, headers),
        (true, _, true) => spdy(kind, headers),
        _ => Err(refuse(
            StatusCode::BAD_REQUEST,
            format!("this URL is for connections that upgrade to websocket or {SPDY}"),
        )),
    }
}

/// The words of a list that may be spread over several headers.
fn words<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

fn choose<'a>(offered: impl Iterator<Item = &'a str>, known: &[&'static str]) -> Option<&'static str> {
    offered.into_iter().find_map(|word| known.iter().copied().find(|one| *one == word))
}

fn spdy(kind: Kind, headers: &HeaderMap) -> Result<Agreed, Refusal> {
    let known = if kind == Kind::PortForward { FORWARD_SPDY } else { COMMAND_SPDY };
    if words(headers, VERSION).next().is_none() {
        return Err(refuse(StatusCode::BAD_REQUEST, "X-Stream-Protocol-Version is missing"));
    }
    choose(words(headers, VERSION), known).map(Agreed::Spdy).ok_or_else(|| Refusal {
        header: Some((ACCEPTED, known.join(","))),
        ..refuse(StatusCode::FORBIDDEN, format!("no common version; known here: {}", known.join(", ")))
    })
}

fn websocket(kind: Kind, headers: &HeaderMap) -> Result<Agreed, Refusal> {
    let known = if kind == Kind::PortForward { FORWARD_WEBSOCKET } else { COMMAND_WEBSOCKET };
    if words(headers, header::SEC_WEBSOCKET_VERSION.as_str()).next() != Some("13") {
        return Err(Refusal {
            header: Some(("sec-websocket-version", "13".into())),
            ..refuse(StatusCode::UPGRADE_REQUIRED, "only version 13 of WebSocket is known here")
        });
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()).unwrap_or_default();
    if !websocket::is_key(key) {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "Sec-WebSocket-Key is missing, or not 16 bytes in base64",
        ));
    }
    let name = header::SEC_WEBSOCKET_PROTOCOL.as_str();
    let protocol = choose(words(headers, name), known);
    let none_asked = words(headers, name).next().is_none() && kind != Kind::PortForward;
    if protocol.is_none() && !none_asked {
        return Err(refuse(
            StatusCode::FORBIDDEN,
            format!("no common Sec-WebSocket-Protocol; known here: {}", known.join(", ")),
        ));
    }
    Ok(Agreed::WebSocket { protocol, accept: websocket::accept(key) })
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| {
                (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");

    fn over_spdy(kind: Kind, versions: &[&str]) -> Result<Agreed, Refusal> {
        let mut list = vec![("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
        list.extend(versions.iter().map(|version| (VERSION, *version)));
        agree(kind, &headers(&list))
    }

    fn over_websocket(kind: Kind, protocols: &str) -> Result<Agreed, Refusal> {
        let mut list = vec![
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            KEY,
        ];
        if !protocols.is_empty() {
            list.push(("sec-websocket-protocol", protocols));
        }
        agree(kind, &headers(&list))
    }

    #[test]
    fn the_first_version_of_the_client_that_is_known_wins() {
        // What Kubernetes' Go client offers.
        let all = [
            "v5.channel.k8s.io",
            "v4.channel.k8s.io",
            "v3.channel.k8s.io",
            "v2.channel.k8s.io",
            "channel.k8s.io",
        ];
        assert_eq!(over_spdy(Kind::Exec, &all), Ok(Agreed::Spdy("v4.channel.k8s.io")));
        assert_eq!(
            over_spdy(Kind::Attach, &["v2.channel.k8s.io,v4.channel.k8s.io"]),
            Ok(Agreed::Spdy("v2.channel.k8s.io"))
        );
        assert_eq!(
            over_spdy(Kind::PortForward, &["portforward.k8s.io"]),
            Ok(Agreed::Spdy("portforward.k8s.io"))
        );
        let chosen = |kind, offered| match over_websocket(kind, offered) {
            Ok(Agreed::WebSocket { protocol, .. }) => protocol,
            other => panic!("{other:?}"),
        };
        assert_eq!(chosen(Kind::Exec, "v5.channel.k8s.io"), Some("v5.channel.k8s.io"));
        assert_eq!(chosen(Kind::Exec, "x, base64.channel.k8s.io"), Some("base64.channel.k8s.io"));
        assert_eq!(chosen(Kind::Exec, ""), None);
        assert_eq!(
            chosen(Kind::PortForward, "SPDY/3.1+portforward.k8s.io"),
            Some("SPDY/3.1+portforward.k8s.io")
        );
    }

    #[test]
    fn what_has_no_common_version_is_told_the_known_ones() {
        let refusal = over_spdy(Kind::Exec, &["v9.channel.k8s.io"]).unwrap_err();
        assert_eq!(refusal.status, StatusCode::FORBIDDEN);
        let (name, value) = refusal.header.unwrap();
        assert_eq!((name, value.split(',').next()), (ACCEPTED, Some("v4.channel.k8s.io")));
        for (kind, offered) in
            [(Kind::Exec, "v9"), (Kind::PortForward, "v4.channel.k8s.io"), (Kind::PortForward, "")]
        {
            assert_eq!(over_websocket(kind, offered).unwrap_err().status, StatusCode::FORBIDDEN);
        }
    }

    #[test]
    fn what_is_no_upgrade_is_a_bad_request() {
        assert_eq!(over_spdy(Kind::Exec, &[]).unwrap_err().status, StatusCode::BAD_REQUEST);
        for list in [
            &[][..],
            &[("upgrade", "websocket")],
            &[("connection", "Upgrade")],
            &[("connection", "Upgrade"), ("upgrade", "h2c")],
            &[("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")],
        ] {
            assert_eq!(
                agree(Kind::Exec, &headers(list)).unwrap_err().status,
                StatusCode::BAD_REQUEST,
                "{list:?}"
            );
        }
        let old = [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "8"), KEY];
        assert_eq!(agree(Kind::Exec, &headers(&old)).unwrap_err().status, StatusCode::UPGRADE_REQUIRED);
    }
}
