//! The dashboard: the files of the page, which are part of the program, and what it asks for that nothing else needs.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use client_lib::wire::admin::OverviewQuery;
use serde::Deserialize;

use super::{Shared, answer};
use crate::serve::admin::Admin;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// A file of the page.
struct File {
    path: &'static str,
    kind: &'static str,
    content: &'static str,
}

macro_rules! file {
    ($path:literal, $kind:expr, $name:literal) => {
        File { path: $path, kind: $kind, content: include_str!(concat!("../../../dashboard/", $name)) }
    };
}

const FILES: &[File] = &[
    file!("/", HTML, "index.html"),
    file!("/dashboard/sun.svg", SVG, "sun.svg"),
    file!("/dashboard/style.css", CSS, "style.css"),
    file!("/dashboard/actions.js", JAVASCRIPT, "actions.js"),
    file!("/dashboard/api.js", JAVASCRIPT, "api.js"),
    file!("/dashboard/connection.js", JAVASCRIPT, "connection.js"),
    file!("/dashboard/dialog.js", JAVASCRIPT, "dialog.js"),
    file!("/dashboard/dom.js", JAVASCRIPT, "dom.js"),
    file!("/dashboard/drain.js", JAVASCRIPT, "drain.js"),
    file!("/dashboard/forecast.js", JAVASCRIPT, "forecast.js"),
    file!("/dashboard/format.js", JAVASCRIPT, "format.js"),
    file!("/dashboard/main.js", JAVASCRIPT, "main.js"),
    file!("/dashboard/nodes.js", JAVASCRIPT, "nodes.js"),
    file!("/dashboard/poll.js", JAVASCRIPT, "poll.js"),
    file!("/dashboard/residency.js", JAVASCRIPT, "residency.js"),
    file!("/dashboard/ring.js", JAVASCRIPT, "ring.js"),
    file!("/dashboard/secret.js", JAVASCRIPT, "secret.js"),
    file!("/dashboard/snapshots.js", JAVASCRIPT, "snapshots.js"),
    file!("/dashboard/tasks.js", JAVASCRIPT, "tasks.js"),
    file!("/dashboard/theme.js", JAVASCRIPT, "theme.js"),
    file!("/dashboard/timeline.js", JAVASCRIPT, "timeline.js"),
    file!("/dashboard/traffic.js", JAVASCRIPT, "traffic.js"),
    file!("/dashboard/volume.js", JAVASCRIPT, "volume.js"),
    file!("/dashboard/volumes.js", JAVASCRIPT, "volumes.js"),
];

/// The files of the page, in which there is nothing of the cluster.
pub(super) fn files() -> Router {
    FILES.iter().fold(Router::new(), |router, file| {
        let (kind, content) = (file.kind, file.content);
        let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")];
        router.route(file.path, get(move || async move { (headers, content).into_response() }))
    })
}

/// What the page asks for that nothing else does.
pub(super) fn routes() -> Router<Arc<dyn Admin>> {
    Router::new()
        .route("/v1/overview", get(overview))
        .route("/v1/volumes/{name}/residency", get(residency))
        .route("/v1/volumes/{name}/timeline", get(timeline))
}

async fn overview(State(admin): Shared, Query(query): Query<OverviewQuery>) -> Response {
    answer(admin.overview(query).await)
}

/// `?node=NAME&parts=N`, each of them or none.
#[derive(Debug, Deserialize)]
struct OfParts {
    node: Option<String>,
    parts: Option<u32>,
}

async fn residency(State(admin): Shared, Path(name): Path<String>, Query(of): Query<OfParts>) -> Response {
    answer(admin.residency(&name, of.node.as_deref(), of.parts).await)
}

async fn timeline(State(admin): Shared, Path(name): Path<String>) -> Response {
    answer(admin.timeline(&name).await)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_of_the_page_is_served() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboard");
        let there = std::fs::read_dir(directory).expect("is a directory");
        let there = there.map(|entry| entry.expect("is read").file_name().into_string().expect("is text"));
        let served = FILES.iter().map(|file| match file.path {
            "/" => "index.html".to_owned(),
            path => path.trim_start_matches("/dashboard/").to_owned(),
        });
        assert_eq!(there.collect::<BTreeSet<_>>(), served.collect());
    }

    #[test]
    fn the_page_names_nothing_from_elsewhere_and_no_script_of_its_own() {
        for File { path, content, .. } in FILES {
            // The names of the formats are not fetched.
            let text = content.replace("http://www.w3.org/2000/svg", "");
            for (word, why) in [("http://", "an address"), ("https://", "an address"), ("innerHTML", "text as a page")]
            {
                assert!(!text.contains(word), "{path} has {why}: {word}");
            }
            assert!(!text.contains(" style=\""), "{path} has a style that the policy refuses");
        }
        let page = FILES.first().expect("is there").content;
        let inline = page.split("<script").skip(1).filter(|script| !script.trim_start().contains("></script>"));
        assert_eq!(inline.count(), 0, "scripts are in files");
    }
}
