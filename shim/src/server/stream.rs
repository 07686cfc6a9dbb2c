//! The Stream* lists: what their unary twins give, in pieces, so that no message grows with the node.

use std::pin::Pin;

use tokio_stream::Stream;
use tonic::Status;

/// A stream of answers.
pub(super) type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Most items in one message.
const PIECE: usize = 64;
/// Bytes from which on a message takes no further item: labels and annotations may be large, and a client takes messages
/// of 16 MiB.
const PIECE_BYTES: usize = 2 << 20;

/// All items, each once and in their order, in messages of [`PIECE`] or [`PIECE_BYTES`]; of nothing there is no message.
pub(super) fn pieces<T, M>(items: Vec<T>, message: fn(Vec<T>) -> M) -> Items<M>
where
    T: prost::Message + 'static,
    M: Send + 'static,
{
    let mut items = items.into_iter();
    let messages = std::iter::from_fn(move || {
        let (mut piece, mut bytes) = (Vec::new(), 0);
        while piece.len() < PIECE && bytes < PIECE_BYTES {
            let Some(item) = items.next() else { break };
            bytes += item.encoded_len();
            piece.push(item);
        }
        (!piece.is_empty()).then(|| Ok(message(piece)))
    });
    Box::pin(tokio_stream::iter(messages))
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    async fn of(items: Vec<String>) -> Vec<Vec<String>> {
        pieces(items, |piece| piece).map(Result::unwrap).collect().await
    }

    #[tokio::test]
    async fn of_nothing_there_is_no_message() {
        assert!(of(Vec::new()).await.is_empty());
    }

    #[tokio::test]
    async fn every_item_comes_once_and_no_message_is_empty_or_too_long() {
        for count in [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 7] {
            let items: Vec<String> = (0..count).map(|number| number.to_string()).collect();
            let messages = of(items.clone()).await;
            assert!(messages.iter().all(|piece| (1..=PIECE).contains(&piece.len())), "{messages:?}");
            assert_eq!(messages.concat(), items);
        }
    }

    #[tokio::test]
    async fn large_items_come_in_messages_of_few() {
        let messages = of(vec!["x".repeat(PIECE_BYTES / 2 + 1); 5]).await;
        assert_eq!(messages.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    }
}
