//! Which streams belong together: each connection has one for its data and one for its error.
//!
//! Must not know: connections.

use std::{collections::HashMap, time::Duration};

use tokio::time::{Instant, sleep_until};

/// How long the second stream of a pair may take to come.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest name of a pair; clients count.
const NAME_MAX: usize = 64;

/// Both streams of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) data: u32,
    pub(super) error: u32,
    pub(super) port: u16,
    /// The client has ended its data stream already.
    pub(super) ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

#[derive(Debug)]
struct Half {
    kind: Kind,
    stream: u32,
    port: u16,
    /// The client sends nothing on it.
    ended: bool,
    until: Instant,
}

/// Streams that wait for the other one of their pair.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    halves: HashMap<String, Half>,
}

impl Pairs {
    /// A new stream, on which the client sends nothing if it has `ended`; gives the pair that it completes.
    pub(super) fn add(
        &mut self,
        stream: u32,
        ended: bool,
        headers: &[(String, String)],
    ) -> Result<Option<Pair>, &'static str> {
        let header =
            |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        let kind = match header("streamtype") {
            Some("data") => Kind::Data,
            Some("error") => Kind::Error,
            _ => return Err("streamType is neither data nor error"),
        };
        let port = header("port").and_then(|port| port.parse().ok()).filter(|port| *port > 0);
        let port: u16 = port.ok_or("port is no number from 1 to 65535")?;
        // Old clients name no pair: they make the error stream, and the data stream right after it.
        let name = match (header("requestid"), kind) {
            (Some(name), _) if name.len() <= NAME_MAX => format!("named {name}"),
            (Some(_), _) => return Err("requestID is too long"),
            (None, Kind::Error) => format!("unnamed {stream}"),
            (None, Kind::Data) => format!("unnamed {}", stream.wrapping_sub(2)),
        };
        match self.halves.remove(&name) {
            None => {
                let until = Instant::now() + PATIENCE;
                self.halves.insert(name, Half { kind, stream, port, ended, until });
                Ok(None)
            }
            Some(half) if half.kind == kind || half.port != port => {
                self.halves.insert(name, half);
                Err("the pair has another stream of that type, or with another port")
            }
            Some(half) => {
                let (data, error, ended) = match kind {
                    Kind::Data => (stream, half.stream, ended),
                    Kind::Error => (half.stream, stream, half.ended),
                };
                Ok(Some(Pair { data, error, port, ended }))
            }
        }
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.halves.len()
    }

    /// Whether this data stream waits.
    pub(super) fn is_waiting(&self, stream: u32) -> bool {
        self.halves.values().any(|half| half.stream == stream && half.kind == Kind::Data)
    }

    /// The client sends nothing more on the stream.
    pub(super) fn end(&mut self, stream: u32) {
        self.halves.values_mut().filter(|half| half.stream == stream).for_each(|half| half.ended = true);
    }

    /// The stream is over.
    pub(super) fn forget(&mut self, stream: u32) {
        self.halves.retain(|_, half| half.stream != stream);
    }

    /// Completes when a stream has waited too long; never when none waits.
    pub(super) fn first_overdue(&self) -> impl Future<Output = ()> + use<> {
        let first = self.halves.values().map(|half| half.until).min();
        async move {
            match first {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Forgets those that have waited too long, and gives them.
    pub(super) fn take_overdue(&mut self) -> Vec<u32> {
        let now = Instant::now();
        let over: Vec<u32> =
            self.halves.values().filter(|half| half.until <= now).map(|half| half.stream).collect();
        self.halves.retain(|_, half| half.until > now);
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(
        pairs: &mut Pairs,
        stream: u32,
        kind: &str,
        port: &str,
        id: Option<&str>,
    ) -> Result<Option<Pair>, &'static str> {
        let mut headers =
            vec![("streamtype".to_owned(), kind.to_owned()), ("port".to_owned(), port.to_owned())];
        headers.extend(id.map(|id| ("requestid".to_owned(), id.to_owned())));
        pairs.add(stream, false, &headers)
    }

    #[tokio::test]
    async fn streams_pair_by_their_name_in_either_order() {
        let mut pairs = Pairs::default();
        assert_eq!(add(&mut pairs, 1, "error", "80", Some("0")), Ok(None));
        assert_eq!(add(&mut pairs, 3, "data", "81", Some("1")), Ok(None));
        assert_eq!(
            add(&mut pairs, 5, "data", "80", Some("0")),
            Ok(Some(Pair { data: 5, error: 1, port: 80, ended: false }))
        );
        assert!(pairs.is_waiting(3) && !pairs.is_waiting(5));
        assert_eq!(
            add(&mut pairs, 7, "error", "81", Some("1")),
            Ok(Some(Pair { data: 3, error: 7, port: 81, ended: false }))
        );
        assert_eq!(pairs.waiting(), 0);
    }

    #[tokio::test]
    async fn without_names_the_data_stream_follows_its_error_stream() {
        let mut pairs = Pairs::default();
        assert_eq!(add(&mut pairs, 1, "error", "80", None), Ok(None));
        assert_eq!(add(&mut pairs, 5, "error", "80", None), Ok(None));
        assert_eq!(
            add(&mut pairs, 7, "data", "80", None),
            Ok(Some(Pair { data: 7, error: 5, port: 80, ended: false }))
        );
        assert_eq!(
            add(&mut pairs, 3, "data", "80", None),
            Ok(Some(Pair { data: 3, error: 1, port: 80, ended: false }))
        );
    }

    #[tokio::test]
    async fn a_data_stream_that_has_ended_stays_so_until_its_pair_is_whole() {
        let headers = |kind: &str| {
            vec![("streamtype".to_owned(), kind.to_owned()), ("port".to_owned(), "80".to_owned())]
        };
        let mut pairs = Pairs::default();
        let whole = Ok(Some(Pair { data: 3, error: 1, port: 80, ended: true }));
        // Ended from its beginning, as the second of its pair and as the first; and ended while it waits.
        pairs.add(1, false, &headers("error")).unwrap();
        assert_eq!(pairs.add(3, true, &headers("data")), whole);
        pairs.add(3, true, &headers("data")).unwrap();
        assert_eq!(pairs.add(1, false, &headers("error")), whole);
        pairs.add(3, false, &headers("data")).unwrap();
        pairs.end(3);
        assert_eq!(pairs.add(1, false, &headers("error")), whole);
        // The end of an error stream, on which a client says nothing anyway, is none of the data's.
        pairs.add(1, true, &headers("error")).unwrap();
        assert_eq!(
            pairs.add(3, false, &headers("data")),
            Ok(Some(Pair { data: 3, error: 1, port: 80, ended: false }))
        );
    }

    #[tokio::test]
    async fn what_makes_no_pair_is_refused_and_leaves_the_others() {
        let mut pairs = Pairs::default();
        for port in ["", "0", "65536", "-1", "http"] {
            assert!(add(&mut pairs, 1, "data", port, None).is_err(), "{port}");
        }
        assert!(add(&mut pairs, 1, "stdin", "80", None).is_err());
        assert!(add(&mut pairs, 1, "data", "80", Some(&"x".repeat(65))).is_err());
        assert_eq!(add(&mut pairs, 1, "error", "80", Some("0")), Ok(None));
        assert!(add(&mut pairs, 3, "error", "80", Some("0")).is_err());
        assert!(add(&mut pairs, 5, "data", "81", Some("0")).is_err());
        assert!(add(&mut pairs, 7, "data", "80", Some("0")).unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_stays_alone_is_given_up() {
        let mut pairs = Pairs::default();
        add(&mut pairs, 1, "error", "80", Some("0")).unwrap();
        tokio::time::advance(Duration::from_secs(20)).await;
        add(&mut pairs, 3, "error", "80", Some("1")).unwrap();
        assert!(pairs.take_overdue().is_empty());
        pairs.first_overdue().await;
        assert_eq!((pairs.take_overdue(), pairs.waiting()), (vec![1], 1));
    }
}
