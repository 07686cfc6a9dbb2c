//! The Stream* lists: what their unary twins give, in pieces, so that no message grows with the node.

use std::pin::Pin;

use tokio_stream::Stream;
use tonic::Status;

/// A stream of answers.
pub(super) type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Items in one message. The largest ones, a pod's statistics, stay far below a client's limit of 16 MiB.
const PIECE: usize = 64;

/// All items, each once and in their order, in messages of [`PIECE`]; of nothing there is no message.
pub(super) fn pieces<T, M>(items: Vec<T>, message: fn(Vec<T>) -> M) -> Items<M>
where
    T: Send + 'static,
    M: Send + 'static,
{
    let mut items = items.into_iter();
    let messages = std::iter::from_fn(move || {
        let piece: Vec<T> = items.by_ref().take(PIECE).collect();
        (!piece.is_empty()).then(|| Ok(message(piece)))
    });
    Box::pin(tokio_stream::iter(messages))
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    async fn of(count: usize) -> Vec<Vec<usize>> {
        pieces((0..count).collect(), |piece| piece).map(Result::unwrap).collect().await
    }

    #[tokio::test]
    async fn of_nothing_there_is_no_message() {
        assert!(of(0).await.is_empty());
    }

    #[tokio::test]
    async fn every_item_comes_once_and_no_message_is_empty_or_too_long() {
        for count in [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 7] {
            let messages = of(count).await;
            assert!(messages.iter().all(|piece| (1..=PIECE).contains(&piece.len())), "{messages:?}");
            assert_eq!(messages.concat(), (0..count).collect::<Vec<_>>());
        }
    }
}
