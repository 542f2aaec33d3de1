//! What may be looked at without credentials: metrics and health. Read-only, and the same on the admin API and on a listener of its
//! own ([`listener`]).
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | the metrics, in OpenMetrics text |
//! | `/health/live` | 200 while the threads of the node take turns; else it hangs, and a restart helps |
//! | `/health/ready` | 200 while the node can serve what it should, else 503; a restart does not help by itself |
//!
//! Both of the latter say as JSON what was looked at, and what is wrong.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use client_lib::transport::BoxFuture;
use serde::Serialize;

use crate::metrics::exposition::CONTENT_TYPE;

pub mod listener;

/// The seam between the node and those who watch over it.
///
/// # Cancel safety
/// Safe: nothing is changed.
pub trait Observe: Send + Sync + 'static {
    /// The text of a scrape. Scrapes that come close to each other may be given the same.
    fn metrics(&self) -> BoxFuture<'_, Arc<str>>;

    /// Whether the node's threads take turns.
    fn live(&self) -> BoxFuture<'_, Health>;

    /// Whether the node can serve what it should. Questions that come close to each other may be given the same answer.
    fn ready(&self) -> BoxFuture<'_, Health>;
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What it is called.
    pub name: &'static str,
    /// What is wrong, if something is.
    pub failure: Option<String>,
}

/// What came of all that was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// One by one.
    pub checks: Vec<Check>,
}

impl Health {
    /// Whether nothing is wrong, and something was looked at.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.failure.is_none())
    }
}

/// A [`Health`] as it is told.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub(super) struct HealthReport<'a> {
    /// `ok` or `failing`.
    status: &'static str,
    /// One by one.
    checks: Vec<CheckReport<'a>>,
}

/// A [`Check`] as it is told.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub(super) struct CheckReport<'a> {
    /// What it is called.
    check: &'static str,
    /// Whether nothing is wrong.
    ok: bool,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// The paths, answered by `observe`.
pub fn routes(observe: Arc<dyn Observe>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .with_state(observe)
}

async fn metrics(State(observe): State<Arc<dyn Observe>>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], observe.metrics().await.to_string()).into_response()
}

async fn live(State(observe): State<Arc<dyn Observe>>) -> Response {
    told(&observe.live().await)
}

async fn ready(State(observe): State<Arc<dyn Observe>>) -> Response {
    told(&observe.ready().await)
}

fn told(health: &Health) -> Response {
    let (status, word) = match health.is_ok() {
        true => (StatusCode::OK, "ok"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "failing"),
    };
    let checks = health.checks.iter().map(|check| CheckReport {
        check: check.name,
        ok: check.failure.is_none(),
        reason: check.failure.as_deref(),
    });
    (status, Json(HealthReport { status: word, checks: checks.collect() })).into_response()
}
