//! Requests that no handler has seen, as every other failure is told: what axum says of them is plain text, or nothing.

use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use client_lib::ErrorKind;

use super::refused;

/// What is kept of what axum says.
const REASON_BYTES_MAX: usize = 4 << 10;

/// The answer to a request for what is not there.
pub(super) fn absent(status: StatusCode, request: &Request) -> Response {
    let asked = format!("{} {}", request.method(), request.uri().path());
    let message = format!("there is no {asked}: GET /v1/openapi.json describes what there is");
    refused(status, ErrorKind::NotFound, message)
}

/// Puts what axum says of a request that it cannot read into words that programs read.
pub(super) async fn tell_malformed(request: Request, next: Next) -> Response {
    let asked = format!("{} {}", request.method(), request.uri().path());
    let answer = next.run(request).await;
    let is_json = |it: &HeaderValue| it.as_bytes().starts_with(b"application/json");
    let is_told = answer.headers().get(header::CONTENT_TYPE).is_some_and(is_json);
    let status = answer.status();
    if is_told || !status.is_client_error() {
        return answer;
    }
    let said = to_bytes(answer.into_body(), REASON_BYTES_MAX).await.unwrap_or_default();
    let message = format!("{asked}: {}", String::from_utf8_lossy(&said));
    // A body that is JSON and not what is asked for is a request that is wrong, as any other.
    let status = if status == StatusCode::UNPROCESSABLE_ENTITY { StatusCode::BAD_REQUEST } else { status };
    refused(status, ErrorKind::InvalidRequest, message)
}
