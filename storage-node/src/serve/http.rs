//! The HTTP admin API: JSON over what [`Admin`] offers, and the [`dashboard`] over that. On loopback ([`listener`]) it wants the node's secret, and
//! [`guard`] keeps pages of other sites out; for other machines there is [`remote`], which wants a certificate. What each request needs is in
//! [`permissions`], who asks is found out by [`caller`].

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use client_lib::wire::admin::{
    AddVolumeKey, AskTakeover, ChangeGroup, ChangeLabels, ChangeLink, ChangePlacement, ChangePolicy, ChangeReplicas,
    ChangeRights, CloneSnapshot, CreateGroup, CreateSnapshot, CreateVolume, Failure, Migrate, NoteClient, OnWrite,
    Rejoin, RemoveNode, Resize, RevokeClient, RollBack,
};
use client_lib::{Error, ErrorKind};
use serde::Deserialize;

use self::malformed::{absent, tell_malformed};
use self::stale::tell_stale;
use super::admin::{Admin, AskTrace};
use super::audit::{AuditLog, note_acts};
use super::observe::{self, Observe};
use crate::shard::scrub::ScrubAction;
use caller::{Gate, Proof, Secret, authorise};

pub mod caller;
mod dashboard;
mod guard;
pub mod listener;
mod malformed;
mod openapi;
pub mod permissions;
pub mod remote;
pub mod stale;

/// Largest request body, in bytes; requests are a few names.
pub(super) const BODY_BYTES_MAX: usize = 64 << 10;

/// How many acts of each node are told if nothing is said, and at most.
const AUDIT_LIMIT: usize = 50;
const AUDIT_LIMIT_MAX: usize = 10_000;

type Shared = State<Arc<dyn Admin>>;

/// Everything there is on loopback. Beside the API that is what anybody may see: health, metrics, and the files of the page.
fn local(admin: Arc<dyn Admin>, audit: Arc<AuditLog>, observe: Arc<dyn Observe>, secret: Secret) -> Router {
    api(admin, audit, Proof::Secret(secret))
        .route("/health", get(|| async { "ok\n" }))
        .merge(dashboard::files())
        .merge(observe::routes(observe))
        .layer(from_fn(guard::guard))
}

/// The API, for whoever proves by `proof` that he may ask.
fn api(admin: Arc<dyn Admin>, audit: Arc<AuditLog>, proof: Proof) -> Router {
    let gate = Gate { admin: admin.clone(), proof };
    Router::new()
        .route("/v1/volumes", get(volumes).post(create))
        .route("/v1/volumes/{name}", get(volume).delete(delete))
        .route("/v1/volumes/{name}/migrate", post(migrate).delete(cancel_migrate))
        .route("/v1/volumes/{name}/on-write", post(let_go_on_write))
        .route("/v1/volumes/{name}/takeover", get(takeover).post(take_over))
        .route("/v1/volumes/{name}/rejoin", post(rejoin))
        .route("/v1/volumes/{name}/policy", get(policy).post(set_policy))
        .route("/v1/volumes/{name}/owner", get(owner))
        .route("/v1/volumes/{name}/resize", post(resize))
        .route("/v1/volumes/{name}/replicas", post(change_replicas))
        .route("/v1/volumes/{name}/placement", get(placement).post(place_volume))
        .route("/v1/volumes/{name}/keys", get(keys).post(add_key))
        .route("/v1/volumes/{name}/keys/{key}", axum::routing::delete(remove_key))
        .route("/v1/volumes/{name}/snapshots", get(snapshots).post(create_snapshot))
        .route("/v1/volumes/{name}/snapshots/{snapshot}", axum::routing::delete(delete_snapshot))
        .route("/v1/volumes/{name}/snapshots/{snapshot}/rollback", post(roll_back))
        .route("/v1/volumes/{name}/snapshots/{snapshot}/clone", post(clone_snapshot))
        .route("/v1/volumes/{name}/trace", get(trace))
        .route("/v1/groups", get(groups).post(create_group))
        .route("/v1/groups/{name}", get(group).delete(delete_group))
        .route("/v1/groups/{name}/volumes", post(change_group))
        .route("/v1/groups/{name}/replicas", post(change_group_replicas))
        .route("/v1/groups/{name}/placement", get(group_placement).post(place_group))
        .route("/v1/groups/{name}/migrate", post(migrate_group).delete(cancel_group_migrate))
        .route("/v1/groups/{name}/on-write", post(let_group_go_on_write))
        .route("/v1/groups/{name}/snapshots", post(snapshot_group))
        .route("/v1/groups/{name}/snapshots/{snapshot}", axum::routing::delete(delete_group_snapshot))
        .route("/v1/space", get(space))
        .route("/v1/links", get(links))
        .route("/v1/links/{from}/{to}", post(set_link))
        .route("/v1/scrub", get(look_at_scrub).post(start_scrub).delete(stop_scrub))
        .route("/v1/cluster", get(cluster))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/{name}/remove", post(remove_node))
        .route("/v1/nodes/{name}/labels", post(label_node))
        .route("/v1/clients", get(clients).post(note_client))
        .route("/v1/clients/revoke", post(revoke_client))
        .route("/v1/clients/rights", post(change_rights))
        .route("/v1/audit", get(audit_list))
        .route("/v1/openapi.json", get(openapi::serve))
        .merge(dashboard::routes())
        // Named: where routers are merged, one that is not would be left out of what follows.
        .fallback(nothing)
        .layer(from_fn(tell_malformed))
        .layer(from_fn_with_state(audit, note_acts))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn(tell_stale))
        // Before the body is read, and before anything is noted: nobody writes into the list of acts who may not act.
        .layer(from_fn_with_state(gate, authorise))
        .with_state(admin)
}

async fn nothing(request: Request) -> Response {
    absent(StatusCode::NOT_FOUND, &request)
}

async fn volumes(State(admin): Shared) -> Response {
    answer(admin.volumes().await)
}

async fn create(State(admin): Shared, Json(request): Json<CreateVolume>) -> Response {
    answer(admin.create_volume(request).await)
}

async fn volume(State(admin): Shared, Path(name): Path<String>) -> Response {
    answer(admin.volume(&name).await)
}

async fn delete(State(admin): Shared, Path(name): Path<String>) -> Response {
    answer(admin.delete_volume(&name).await)
}

async fn cancel_migrate(State(admin): Shared, Path(name): Path<String>) -> Response {
    answer(admin.cancel_migrate(&name).await)
}

async fn let_go_on_write(State(admin): Shared, Path(name): Path<String>, Json(request): Json<OnWrite>) -> Response {
    answer(admin.let_go_on_write(&name, request).await)
}

async fn migrate(State(admin): Shared, Path(name): Path<String>, Json(request): Json<Migrate>) -> Response {
    answer(admin.migrate(&name, request).await)
}

async fn take_over(State(admin): Shared, Path(name): Path<String>, Json(request): Json<AskTakeover>) -> Response {
    answer(admin.take_over(&name, request).await)
}

async fn takeover(State(admin): Shared, Path(name): Path<String>) -> Response {
    answer(admin.takeover(&name).await)
}

async fn rejoin(State(admin): Shared, Path(name): Path<String>, Json(request): Json<Rejoin>) -> Response {
    answer(admin.rejoin(&name, request).await)
}

async fn owner(State(admin): Shared, Path(name): Path<String>) -> Response {
    answer(admin.owner(&name).await)
}

async fn policy(State(admin): Shared, Path(name): Path<String>) -> Response {
    answer(admin.policy(&name).await)
}

async fn set_policy(State(admin): Shared, Path(name): Path<String>, Json(wanted): Json<ChangePolicy>) -> Response {
    answer(admin.set_policy(&name, wanted).await)
}

async fn resize(State(admin): Shared, Path(name): Path<String>, Json(request): Json<Resize>) -> Response {
    answer(admin.resize(&name, request).await)
}

async fn change_replicas(
    State(admin): Shared,
    Path(name): Path<String>,
    Json(request): Json<ChangeReplicas>,
) -> Response {
    answer(admin.change_replicas(&name, request).await)
}

async fn change_group_replicas(
    State(admin): Shared,
    Path(name): Path<String>,
    Json(request): Json<ChangeReplicas>,
) -> Response {
    answer(admin.change_group_replicas(&name, request).await)
}

async fn placement(State(admin): Shared, Path(name): Path<String>) -> Response {
    answer(admin.placement(&name).await)
}

async fn place_volume(State(admin): Shared, Path(name): Path<String>, Json(wanted): Json<ChangePlacement>) -> Response {
    answer(admin.place_volume(&name, wanted).await)
}

async fn group_placement(State(admin): Shared, Path(name): Path<String>) -> Response {
    answer(admin.group_placement(&name).await)
}

async fn place_group(State(admin): Shared, Path(name): Path<String>, Json(wanted): Json<ChangePlacement>) -> Response {
    answer(admin.place_group(&name, wanted).await)
}

async fn label_node(State(admin): Shared, Path(name): Path<String>, Json(wanted): Json<ChangeLabels>) -> Response {
    answer(admin.label_node(&name, wanted).await)
}

/// `?op=KIND,KIND&for_ms=N&slowest=N`, each of them or none.
#[derive(Debug, Deserialize)]
struct OfTrace {
    op: Option<String>,
    for_ms: Option<u64>,
    slowest: Option<u32>,
}

async fn trace(State(admin): Shared, Path(name): Path<String>, Query(of): Query<OfTrace>) -> Response {
    let kinds = of.op.iter().flat_map(|op| op.split(',')).map(str::to_owned).collect();
    answer(admin.trace(&name, AskTrace { kinds, for_ms: of.for_ms, slowest: of.slowest }).await)
}

async fn keys(State(admin): Shared, Path(name): Path<String>) -> Response {
    answer(admin.keys(&name).await)
}

async fn add_key(State(admin): Shared, Path(name): Path<String>, Json(request): Json<AddVolumeKey>) -> Response {
    answer(admin.add_key(&name, request).await)
}

async fn remove_key(State(admin): Shared, Path((name, key)): Path<(String, String)>) -> Response {
    answer(admin.remove_key(&name, &key).await)
}

async fn snapshots(State(admin): Shared, Path(name): Path<String>) -> Response {
    answer(admin.snapshots(&name).await)
}

async fn create_snapshot(
    State(admin): Shared,
    Path(name): Path<String>,
    Json(request): Json<CreateSnapshot>,
) -> Response {
    answer(admin.create_snapshot(&name, request).await)
}

async fn delete_snapshot(State(admin): Shared, Path((name, snapshot)): Path<(String, String)>) -> Response {
    answer(admin.delete_snapshot(&name, &snapshot).await)
}

async fn roll_back(
    State(admin): Shared,
    Path((name, snapshot)): Path<(String, String)>,
    Json(request): Json<RollBack>,
) -> Response {
    answer(admin.roll_back(&name, &snapshot, request).await)
}

async fn clone_snapshot(
    State(admin): Shared,
    Path((name, snapshot)): Path<(String, String)>,
    Json(request): Json<CloneSnapshot>,
) -> Response {
    answer(admin.clone_snapshot(&name, &snapshot, request).await)
}

async fn groups(State(admin): Shared) -> Response {
    answer(admin.groups().await)
}

async fn create_group(State(admin): Shared, Json(request): Json<CreateGroup>) -> Response {
    answer(admin.create_group(request).await)
}

async fn group(State(admin): Shared, Path(name): Path<String>) -> Response {
    answer(admin.group(&name).await)
}

async fn delete_group(State(admin): Shared, Path(name): Path<String>) -> Response {
    answer(admin.delete_group(&name).await)
}

async fn change_group(State(admin): Shared, Path(name): Path<String>, Json(request): Json<ChangeGroup>) -> Response {
    answer(admin.change_group(&name, request).await)
}

async fn migrate_group(State(admin): Shared, Path(name): Path<String>, Json(request): Json<Migrate>) -> Response {
    answer(admin.migrate_group(&name, request).await)
}

async fn cancel_group_migrate(State(admin): Shared, Path(name): Path<String>) -> Response {
    answer(admin.cancel_group_migrate(&name).await)
}

async fn let_group_go_on_write(
    State(admin): Shared,
    Path(name): Path<String>,
    Json(request): Json<OnWrite>,
) -> Response {
    answer(admin.let_group_go_on_write(&name, request).await)
}

async fn snapshot_group(
    State(admin): Shared,
    Path(name): Path<String>,
    Json(request): Json<CreateSnapshot>,
) -> Response {
    answer(admin.snapshot_group(&name, request).await)
}

async fn delete_group_snapshot(State(admin): Shared, Path((name, snapshot)): Path<(String, String)>) -> Response {
    answer(admin.delete_group_snapshot(&name, &snapshot).await)
}

/// `?node=NAME`.
#[derive(Debug, Deserialize)]
struct OfNode {
    node: Option<String>,
}

async fn space(State(admin): Shared, Query(of): Query<OfNode>) -> Response {
    answer(admin.space(of.node.as_deref()).await)
}

async fn set_link(
    State(admin): Shared,
    Path((from, to)): Path<(String, String)>,
    Json(wanted): Json<ChangeLink>,
) -> Response {
    answer(admin.set_link(&from, &to, wanted).await)
}

async fn links(State(admin): Shared) -> Response {
    answer(admin.links().await)
}

/// `?volume=NAME&node=NAME`, each of them or none.
#[derive(Debug, Deserialize)]
struct OfVolume {
    volume: Option<String>,
    node: Option<String>,
}

async fn scrub(admin: Arc<dyn Admin>, action: ScrubAction, of: OfVolume) -> Response {
    answer(admin.scrub(action, of.volume.as_deref(), of.node.as_deref()).await)
}

async fn look_at_scrub(State(admin): Shared, Query(of): Query<OfVolume>) -> Response {
    scrub(admin, ScrubAction::Look, of).await
}

async fn start_scrub(State(admin): Shared, Query(of): Query<OfVolume>) -> Response {
    scrub(admin, ScrubAction::Start, of).await
}

async fn stop_scrub(State(admin): Shared, Query(of): Query<OfVolume>) -> Response {
    scrub(admin, ScrubAction::Stop, of).await
}

async fn cluster(State(admin): Shared) -> Response {
    answer(admin.cluster().await)
}

async fn nodes(State(admin): Shared) -> Response {
    answer(admin.nodes().await)
}

async fn remove_node(State(admin): Shared, Path(name): Path<String>, Json(request): Json<RemoveNode>) -> Response {
    answer(admin.remove_node(&name, request).await)
}

async fn clients(State(admin): Shared) -> Response {
    answer(admin.clients().await)
}

async fn note_client(State(admin): Shared, Json(request): Json<NoteClient>) -> Response {
    answer(admin.note_client(request).await)
}

async fn revoke_client(State(admin): Shared, Json(request): Json<RevokeClient>) -> Response {
    answer(admin.revoke_client(request).await)
}

async fn change_rights(State(admin): Shared, Json(request): Json<ChangeRights>) -> Response {
    answer(admin.change_rights(request).await)
}

/// `?limit=N`.
#[derive(Debug, Deserialize)]
struct Newest {
    limit: Option<usize>,
}

async fn audit_list(State(admin): Shared, Query(newest): Query<Newest>) -> Response {
    answer(admin.audit(newest.limit.unwrap_or(AUDIT_LIMIT).min(AUDIT_LIMIT_MAX)).await)
}

fn answer<T: serde::Serialize>(result: Result<T, Error>) -> Response {
    match result {
        Ok(body) => Json(body).into_response(),
        Err(error) => {
            let status = status_of(error.kind());
            refused(status, error.kind(), error.to_string())
        }
    }
}

/// The answer to what is not done, as programs read it.
fn refused(status: StatusCode, kind: ErrorKind, message: String) -> Response {
    (status, Json(Failure { kind, message })).into_response()
}

/// The status of a failure.
fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::InvalidRequest => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::AlreadyExists | ErrorKind::Busy | ErrorKind::NotOwner | ErrorKind::Fenced => StatusCode::CONFLICT,
        ErrorKind::Unavailable | ErrorKind::Closed => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::OutOfSpace => StatusCode::INSUFFICIENT_STORAGE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
