//! A call's own time limit. Purpose: a call that takes longer than its client gave it ends with DEADLINE_EXCEEDED, as
//! gRPC asks for and CRI clients look for; what tonic does by itself is to cancel it.
//!
//! Must not know which calls there are.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response};
use tonic::Status;
use tower::{Layer, Service};

/// So much earlier than tonic's own timer, which counts whole milliseconds.
const EARLIER: Duration = Duration::from_millis(1);

/// Puts [`InTime`] around a service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines;

impl<S> Layer<S> for Deadlines {
    type Service = InTime<S>;

    fn layer(&self, inner: S) -> InTime<S> {
        InTime { inner }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct InTime<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for InTime<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    R: Default + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // Begun before tonic begins its own, so that it ends first.
        let timer = limit(request.headers()).map(|limit| tokio::time::sleep(limit.saturating_sub(EARLIER)));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let Some(timer) = timer else { return answer.await };
            tokio::select! {
                biased;
                answer = answer => answer,
                () = timer => Ok(Status::deadline_exceeded("the time that the call was given is over").into_http()),
            }
        })
    }
}

/// `grpc-timeout`: up to eight digits and a unit. A malformed one is no limit, for tonic as well.
fn limit(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn limits_have_units() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_str(text).unwrap());
            limit(&headers)
        };
        assert_eq!(read("1m"), Some(Duration::from_millis(1)));
        assert_eq!(read("2S"), Some(Duration::from_secs(2)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for odd in ["", "1", "m", "1x", "123456789S", "-1S", "1.5S"] {
            assert_eq!(read(odd), None, "{odd:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_takes_too_long_ends_with_the_code_that_says_so() {
        let slow = tower::service_fn(|_: Request<()>| async {
            std::future::pending::<()>().await;
            Ok::<_, std::convert::Infallible>(Response::new(()))
        });
        let request = Request::builder().header("grpc-timeout", "1m").body(()).unwrap();
        let answer = Deadlines.layer(slow).call(request).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4");
    }
}
