//! Spans as OTLP has them: the messages of a request to export traces, as protobuf. Pure.
//!
//! Of the protocol only what is told here: field numbers are those of `opentelemetry/proto/trace/v1/trace.proto`, `common/v1/common.proto`,
//! `resource/v1/resource.proto` and `collector/trace/v1/trace_service.proto` of OTLP 1; fields that are left out have their defaults. A test decodes
//! them with the types of the `opentelemetry-proto` crate.

use client_lib::random;
use client_lib::trace::{Stage, Traced};
use prost::Message;

/// Who tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Teller {
    /// The node's name.
    pub node: String,
    /// Its failure domain.
    pub provider: String,
}

/// An operation, and when it began.
#[derive(Clone, Debug)]
pub struct Told {
    /// The volume.
    pub volume: String,
    /// The operation.
    pub traced: Traced,
    /// The node that it waited for last.
    pub waited_for: Option<String>,
    /// When it began, in nanoseconds since 1970.
    pub began_ns: u64,
}

/// `ExportTraceServiceRequest`.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

/// `InstrumentationScope`.
#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 3")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    /// `SpanKind`.
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    /// `StatusCode`.
    #[prost(int32, tag = "3")]
    code: i32,
}

const KIND_INTERNAL: i32 = 1;
const KIND_SERVER: i32 = 2;
const KIND_CLIENT: i32 = 3;
const STATUS_ERROR: i32 = 2;

fn text(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(Value::Text(value.to_owned())) }) }
}

fn number(key: &str, value: u64) -> KeyValue {
    // Nothing that is told comes near the bound.
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(Value::Number(value)) }) }
}

/// An identifier, which is never all zeroes.
fn id(words: usize) -> Vec<u8> {
    (0..words).flat_map(|_| random::bits().max(1).to_be_bytes()).collect()
}

/// How many spans an operation is.
#[must_use]
pub fn spans_of(traced: &Traced) -> u64 {
    1 + traced.spans.len() as u64
}

/// The request that tells of these operations: for each a span, and below it one for each time in a stage.
#[must_use]
pub fn request(teller: &Teller, operations: &[Told]) -> Vec<u8> {
    let resource = Resource {
        attributes: vec![
            text("service.name", "heliotrope"),
            text("service.version", env!("CARGO_PKG_VERSION")),
            text("service.instance.id", &teller.node),
            text("helio.provider", &teller.provider),
        ],
    };
    let scope = Scope { name: "heliotrope".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let spans = operations.iter().flat_map(spans).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
    Request { resource_spans: vec![ResourceSpans { resource: Some(resource), scope_spans }] }.encode_to_vec()
}

fn spans(told: &Told) -> Vec<Span> {
    let Told { volume, traced, waited_for, began_ns } = told;
    let at = |after: std::time::Duration| began_ns + after.as_nanos() as u64;
    let (trace_id, root) = (id(2), id(1));
    let mut attributes = vec![text("helio.volume", volume), text("helio.operation", traced.what.kind.name())];
    if traced.what.bytes > 0 {
        attributes.extend([number("helio.offset", traced.what.offset), number("helio.bytes", traced.what.bytes)]);
    }
    let mut spans = vec![Span {
        trace_id: trace_id.clone(),
        span_id: root.clone(),
        parent_span_id: Vec::new(),
        name: format!("helio {}", traced.what.kind.name()),
        kind: KIND_SERVER,
        start_time_unix_nano: *began_ns,
        end_time_unix_nano: at(traced.took),
        attributes,
        status: (!traced.succeeded).then_some(Status { code: STATUS_ERROR }),
    }];
    spans.extend(traced.spans.iter().map(|span| {
        let is_away = matches!(span.stage, Stage::Network | Stage::Remote);
        let node = waited_for.iter().filter(|_| is_away).map(|node| text("helio.node", node));
        Span {
            trace_id: trace_id.clone(),
            span_id: id(1),
            parent_span_id: root.clone(),
            name: span.stage.name().to_owned(),
            kind: if is_away { KIND_CLIENT } else { KIND_INTERNAL },
            start_time_unix_nano: at(span.after),
            end_time_unix_nano: at(span.after + span.took),
            attributes: node.collect(),
            status: None,
        }
    }));
    spans
}
