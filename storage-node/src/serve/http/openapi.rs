//! The description of the admin API, `GET /v1/openapi.json`: OpenAPI 3.1, from the [`operations`] and the types that they take and give.
//!
//! Types are described by their own definitions and comments (schemars, behind a feature of `client-lib`). `docs/openapi.json` is the same,
//! written by a test, which also compares it with the routers (`tests/tests/openapi.rs`). Files of the dashboard are not part of it.

use std::sync::OnceLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use client_lib::ErrorKind;
use client_lib::wire::admin::Failure;
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use self::operations::{OPERATIONS, Operation};
use super::status_of;

mod operations;

/// Where types are, for references to them.
const TYPES: &str = "/components/schemas";

/// What each kind of failure says, for the status that it has.
const FAILURES: [ErrorKind; 6] = [
    ErrorKind::InvalidRequest,
    ErrorKind::NotFound,
    ErrorKind::Busy,
    ErrorKind::Internal,
    ErrorKind::Unavailable,
    ErrorKind::OutOfSpace,
];

/// The description of a type, as the generator that is given needs it.
type Shape = fn(&mut SchemaGenerator) -> Schema;

/// What a request is answered when it is carried out.
enum Answer {
    /// JSON of this type.
    Json(Shape),
    /// JSON of this type, with 200 or 503.
    Health(Shape),
    /// Text of this kind.
    Text(&'static str),
}

pub(super) async fn serve() -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| text(&document()));
    ([(header::CONTENT_TYPE, "application/json")], text.as_str()).into_response()
}

/// As it is served and kept.
fn text(document: &Value) -> String {
    format!("{document:#}\n")
}

/// What the kinds that share a status with `kind` mean.
fn failure(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidRequest => "`InvalidRequest`: it can never succeed as it stands.",
        ErrorKind::NotFound => "`NotFound`: there is no such volume, node, snapshot, group or client.",
        ErrorKind::Busy => {
            "`Busy`: something else is under way. `AlreadyExists`: the name is taken. `NotOwner`, `Fenced`: another node owns the volume by now."
        }
        ErrorKind::Unavailable => {
            "`Unavailable`: a node that is needed, or a majority, cannot be reached; the outcome may be unknown. `Closed`: the node is stopping."
        }
        ErrorKind::OutOfSpace => "`OutOfSpace`: a store is full.",
        _ => "`Internal`, `Corrupt`: a fault of the node; its log has more.",
    }
}

/// The whole description.
fn document() -> Value {
    // What is asked may leave out what has a default; what is answered has everything.
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = TYPES.into();
        settings.meta_schema = None;
    });
    let mut asked = settings.clone().for_deserialize().into_generator();
    let mut answered = settings.for_serialize().into_generator();
    let bodies: Vec<Option<Value>> =
        OPERATIONS.iter().map(|operation| Some((operation.request?)(&mut asked).into())).collect();
    let described: Vec<Value> = OPERATIONS.iter().map(|operation| described(operation, &mut answered)).collect();
    let failed = answered.subschema_for::<Failure>();
    let responses = FAILURES.map(|kind| {
        let status = status_of(kind).as_u16().to_string();
        (status, json!({ "description": failure(kind), "content": { "application/json": { "schema": failed } } }))
    });
    let (mut schemas, asked) = (answered.take_definitions(true), asked.take_definitions(true));
    let twofold = differing(&asked, &schemas);
    for (name, mut schema) in asked {
        rename(&mut schema, &twofold);
        schemas.insert(if twofold.contains(&name) { as_asked(&name) } else { name }, schema);
    }
    let mut paths: Map<String, Value> = Map::new();
    for ((operation, body), mut described) in OPERATIONS.iter().zip(bodies).zip(described) {
        if let Some(mut schema) = body {
            rename(&mut schema, &twofold);
            described["requestBody"] =
                json!({ "required": true, "content": { "application/json": { "schema": schema } } });
        }
        paths.entry(operation.path).or_insert_with(|| json!({}))[operation.method] = described;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Heliotrope admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What administrators ask of a node; any node answers. On loopback it wants the node's secret, `admin.secret` of its data \
                directory, as `Authorization: Bearer`; for other machines, where that is switched on, a client's certificate with a role. `Host` \
                must be a name of this machine, `Origin`, if it is there, the node's own page, and what changes something is sent as \
                `application/json`: else it is refused with 403 or 415. Who does not \
                prove who he is gets 401, who may not do it 403. Names are names, sizes are bytes, positions of a volume are `EPOCH.SEQUENCE`. Fields \
                are only ever added. An answer with the header `helio-stale` is what the node knew last: the metadata has no leader.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "http://127.0.0.1:10880", "description": "The default of a node; `[admin] http` of its settings" }],
        "paths": paths,
        "components": { "schemas": schemas, "responses": Map::from_iter(responses) },
    })
}

/// The names of types that look different when they are asked, because of what they may leave out, or because a type within does.
fn differing(asked: &Map<String, Value>, answered: &Map<String, Value>) -> Vec<String> {
    let mut found = Vec::new();
    loop {
        let differs = |(name, schema): &(&String, &Value)| {
            let mut renamed = (*schema).clone();
            rename(&mut renamed, &found);
            !found.contains(*name) && answered.get(*name).is_some_and(|answered| *answered != renamed)
        };
        let more: Vec<String> = asked.iter().filter(differs).map(|(name, _)| name.clone()).collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// The name of what is asked where it looks different from what is answered under that name: it may leave something out.
fn as_asked(name: &str) -> String {
    format!("{name}Asked")
}

/// Has references to these types lead to what is asked.
fn rename(schema: &mut Value, twofold: &[String]) {
    match schema {
        Value::Object(members) => members.iter_mut().for_each(|(word, member)| match member {
            Value::String(target) if word == "$ref" => {
                let name = target.rsplit('/').next().filter(|name| twofold.iter().any(|twofold| twofold == name));
                if let Some(name) = name {
                    *target = format!("#{TYPES}/{}", as_asked(name));
                }
            }
            _ => rename(member, twofold),
        }),
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, twofold)),
        _ => {}
    }
}

/// An operation without its body.
fn described(operation: &Operation, answered: &mut SchemaGenerator) -> Value {
    let in_path = operation
        .path
        .split(['{', '}'])
        .skip(1)
        .step_by(2)
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
    let in_query = operation.query.iter().map(|(name, kind, description)| {
        json!({ "name": name, "in": "query", "description": description, "schema": { "type": kind } })
    });
    let parameters: Vec<Value> = in_path.chain(in_query).collect();
    let mut responses = Map::new();
    let mut answers = |status: &str, description: &str, kind: &str, schema: Value| {
        let content = json!({ "description": description, "content": { kind: { "schema": schema } } });
        responses.insert(status.to_owned(), content);
    };
    let can_fail = match operation.answer {
        Answer::Json(shape) => {
            answers("200", "It is done, or this is it.", "application/json", shape(answered).into());
            true
        }
        Answer::Health(shape) => {
            let schema: Value = shape(answered).into();
            answers("200", "Nothing is wrong.", "application/json", schema.clone());
            answers("503", "Something is wrong.", "application/json", schema);
            false
        }
        Answer::Text(kind) => {
            answers("200", "This is it.", kind, json!({ "type": "string" }));
            false
        }
    };
    for kind in FAILURES.iter().filter(|_| can_fail) {
        let status = status_of(*kind).as_u16().to_string();
        responses.insert(status.clone(), json!({ "$ref": format!("#/components/responses/{status}") }));
    }
    let mut described = json!({
        "operationId": operation.id, "summary": operation.summary, "tags": [operation.tag], "responses": responses,
    });
    if !parameters.is_empty() {
        described["parameters"] = json!(parameters);
    }
    described
}
