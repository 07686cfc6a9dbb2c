//! What happens to pods and containers, told to whoever listens (CRI `GetContainerEvents`).
//!
//! Telling never waits: events go through one ring, and a listener that falls behind by more than it holds loses
//! the oldest ones. Nothing is kept for listeners to come. It must not know what an event means.

use std::sync::{Arc, Mutex, PoisonError};

use crisp_proto::runtime::v1 as cri;
use tokio::sync::broadcast;
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{BroadcastStream, errors::BroadcastStreamRecvError},
};

/// How many events a listener may be behind.
const BEHIND: usize = 1024;

/// See the module.
#[derive(Debug)]
pub struct Events {
    /// `None` once the daemon ends.
    ring: Mutex<Option<broadcast::Sender<Arc<cri::ContainerEventResponse>>>>,
}

impl Default for Events {
    fn default() -> Self {
        Self::with_room(BEHIND)
    }
}

impl Events {
    fn with_room(behind: usize) -> Self {
        Self { ring: Mutex::new(Some(broadcast::Sender::new(behind))) }
    }

    fn ring(&self) -> Option<broadcast::Sender<Arc<cri::ContainerEventResponse>>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells all listeners. `event` is not asked for when there are none.
    pub fn tell(&self, event: impl FnOnce() -> cri::ContainerEventResponse) {
        if let Some(ring) = self.ring().filter(|ring| ring.receiver_count() > 0) {
            // An error says that the last listener has left since.
            let _ = ring.send(Arc::new(event()));
        }
    }

    /// Everything that happens from now on, until the daemon ends.
    pub fn listen(&self) -> impl Stream<Item = cri::ContainerEventResponse> + Send + use<> {
        let receiver = match self.ring() {
            Some(ring) => ring.subscribe(),
            // The sender is dropped at once: a stream that has ended.
            None => broadcast::channel(1).1,
        };
        BroadcastStream::new(receiver).filter_map(|event| match event {
            Ok(event) => Some((*event).clone()),
            Err(BroadcastStreamRecvError::Lagged(lost)) => {
                tracing::warn!(lost, "a client does not keep up with the events; the oldest are lost to it");
                None
            }
        })
    }

    /// Ends all streams: a daemon that shuts down waits for its calls to end, and this one would never.
    pub fn close(&self) {
        *self.ring.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: i64) -> cri::ContainerEventResponse {
        cri::ContainerEventResponse { created_at: number, ..Default::default() }
    }

    async fn rest(events: &Events, stream: impl Stream<Item = cri::ContainerEventResponse>) -> Vec<i64> {
        events.close();
        stream.map(|event| event.created_at).collect().await
    }

    #[tokio::test]
    async fn every_listener_gets_every_event_in_order() {
        let events = Events::default();
        let (first, second) = (events.listen(), events.listen());
        for number in 0..5 {
            events.tell(|| event(number));
        }
        assert_eq!(rest(&events, first).await, [0, 1, 2, 3, 4]);
        assert_eq!(rest(&events, second).await, [0, 1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn a_slow_listener_loses_the_oldest_and_holds_up_nobody() {
        let events = Events::with_room(4);
        let slow = events.listen();
        let mut quick = Box::pin(events.listen());
        for number in 0..10 {
            events.tell(|| event(number));
            assert_eq!(quick.next().await.map(|event| event.created_at), Some(number));
        }
        assert_eq!(rest(&events, slow).await, [6, 7, 8, 9]);
    }

    #[tokio::test]
    async fn nothing_is_made_or_kept_for_nobody() {
        let events = Events::default();
        events.tell(|| unreachable!("nobody listens"));
        let late = events.listen();
        assert!(rest(&events, late).await.is_empty());
    }

    #[tokio::test]
    async fn a_stream_that_is_opened_after_the_end_has_ended() {
        let events = Events::default();
        events.close();
        assert!(rest(&events, events.listen()).await.is_empty());
        events.tell(|| unreachable!("it is over"));
    }
}
