//! Answers that may be old: while the metadata has no leader, questions are answered with what the node knew last, and say so.

use std::cell::Cell;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

/// The header of such an answer. Its value says why.
pub const STALE_HEADER: &str = "helio-stale";

tokio::task_local! {
    static IS_STALE: Cell<bool>;
}

/// To be called by what answers a request: of metadata that may be old.
pub fn note_stale() {
    // Outside of a request nobody is told.
    let _ = IS_STALE.try_with(|is_stale| is_stale.set(true));
}

/// Says so of an answer for which that was noted.
pub(super) async fn tell_stale(request: Request, next: Next) -> Response {
    marked(next.run(request)).await
}

async fn marked(answering: impl Future<Output = Response>) -> Response {
    let answered = async {
        let mut response = answering.await;
        if IS_STALE.with(Cell::get) {
            let name = HeaderName::from_static(STALE_HEADER);
            response.headers_mut().insert(name, HeaderValue::from_static("no leader"));
        }
        response
    };
    IS_STALE.scope(Cell::new(false), answered).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_an_answer_of_old_metadata_says_so() {
        note_stale();
        let answer = |is_stale| async move {
            tokio::task::yield_now().await;
            if is_stale {
                note_stale();
            }
            Response::default()
        };
        assert_eq!(marked(answer(true)).await.headers()[STALE_HEADER], "no leader");
        assert!(!marked(answer(false)).await.headers().contains_key(STALE_HEADER));
    }
}
