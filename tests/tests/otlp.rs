//! Operations told to a collector of OTLP: what comes is decoded by the types of the `opentelemetry-proto` crate, which know nothing of how
//! the node writes it. A collector that does not take anything costs the volume nothing.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use tests::exposition::Exposition;
use tests::http;
use tests::nbd_client::Client;
use tests::nodes::Nodes;

const BLOCK: usize = 4096;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request that a collector got: its head, and its body.
type Got = (String, Vec<u8>);

fn read_request(stream: &mut TcpStream) -> Option<Got> {
    let (mut bytes, mut piece) = (Vec::new(), [0; 65536]);
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.expect("a length").trim().parse().expect("a number");
            if bytes.len() >= end + 4 + length {
                return Some((head, bytes.split_off(end + 4)));
            }
        }
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return None,
            Ok(read) => bytes.extend_from_slice(&piece[..read]),
        }
    }
}

/// Listens, and answers every request with `status`.
fn collector(status: &'static str) -> (SocketAddr, Receiver<Got>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let address = listener.local_addr().expect("has an address");
    let (told, got) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let Some(request) = read_request(&mut stream) else { continue };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            // The other end may be gone.
            let _ = stream.write_all(answer.as_bytes());
            if told.send(request).is_err() {
                return;
            }
        }
    });
    (address, got)
}

/// A node that tells the collector at `address` of every operation, with a volume.
fn node(address: SocketAddr) -> Nodes {
    let mut nodes = Nodes::none().expect("a directory");
    nodes.configure("a").expect("is written");
    let mut settings = std::fs::read_to_string(nodes.config("a")).expect("is read");
    settings.push_str(&format!("\n[trace]\nendpoint = \"http://{address}/v1/traces\"\nsample = 1.0\n"));
    std::fs::write(nodes.config("a"), settings).expect("is written");
    nodes.join("a").expect("starts");
    nodes.run("a", &["volume", "create", "disk", "--size", "32M"]).expect("is created");
    nodes
}

fn spans_counted(nodes: &Nodes, outcome: &str) -> f64 {
    let file = std::fs::read(nodes.path().join("a").join("cluster.json")).expect("is read");
    let file: serde_json::Value = serde_json::from_slice(&file).expect("is JSON");
    let address = file["nodes"][0]["http"].as_str().expect("it serves HTTP").to_owned();
    let text = http::get(&address, "/metrics").expect("answers").body;
    let metrics = Exposition::parse(&text).expect("is OpenMetrics");
    metrics.get("helio_trace_spans_total", &[("outcome", outcome)]).expect("is counted")
}

fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    })
}

#[test]
fn a_collector_gets_a_span_for_each_operation_and_one_for_each_stage() {
    let (address, got) = collector("200 OK");
    let nodes = node(address);
    let mut client = Client::connect(&nodes.socket("a"), "disk").expect("connects");
    for block in 0..20 {
        client.write(block * BLOCK as u64, &[7; BLOCK]).expect("is written");
    }
    client.read(3 * BLOCK as u64, BLOCK as u32).expect("is read");
    client.flush().expect("is flushed");

    let (begun, mut roots) = (Instant::now(), BTreeMap::<String, u64>::new());
    while roots.values().sum::<u64>() < 22 {
        let left = PATIENCE.checked_sub(begun.elapsed()).expect("everything comes in time");
        let (head, body) = got.recv_timeout(left).expect("something comes");
        assert!(head.starts_with("post /v1/traces http/1.1"), "{head}");
        assert!(head.contains("content-type: application/x-protobuf"), "{head}");
        let request = ExportTraceServiceRequest::decode(&body[..]).expect("is what it should be");
        let [of_node] = &request.resource_spans[..] else { panic!("{} nodes", request.resource_spans.len()) };
        let resource = &of_node.resource.as_ref().expect("says who tells").attributes;
        assert_eq!(attribute(resource, "service.name").as_deref(), Some("heliotrope"));
        assert_eq!(attribute(resource, "service.instance.id").as_deref(), Some("a"));
        for span in
            of_node.scope_spans.iter().flat_map(|scope| &scope.spans).filter(|span| span.parent_span_id.is_empty())
        {
            *roots.entry(span.name.clone()).or_default() += 1;
            check(span, of_node.scope_spans.iter().flat_map(|scope| &scope.spans));
        }
    }
    let expected = [("helio flush", 1), ("helio read", 1), ("helio write", 20)];
    assert_eq!(roots, expected.map(|(name, count)| (name.to_owned(), count)).into());
    assert!(spans_counted(&nodes, "exported") > 44.0);
}

/// A span of an operation, and those below it: they follow each other from its beginning to its end.
fn check<'a>(root: &Span, all: impl Iterator<Item = &'a Span>) {
    assert_eq!((root.trace_id.len(), root.span_id.len(), root.kind()), (16, 8, SpanKind::Server));
    assert_eq!(attribute(&root.attributes, "helio.volume").as_deref(), Some("disk"));
    if root.name == "helio write" {
        assert_eq!(attribute(&root.attributes, "helio.bytes").as_deref(), Some("4096"));
    }
    assert!(root.status.is_none(), "it succeeded");
    let mut at = root.start_time_unix_nano;
    let below: Vec<&Span> = all.filter(|span| span.parent_span_id == root.span_id).collect();
    for span in &below {
        assert_eq!(
            (span.trace_id.as_slice(), span.start_time_unix_nano),
            (root.trace_id.as_slice(), at),
            "{}",
            span.name
        );
        assert!(["socket", "queue", "log", "disk"].contains(&span.name.as_str()), "{}", span.name);
        at = span.end_time_unix_nano;
    }
    assert!(below.len() >= 2 && at == root.end_time_unix_nano, "{} spans", below.len());
}

#[test]
fn what_a_collector_does_not_take_is_dropped_and_counted_and_nobody_waits() {
    let (address, got) = collector("503 Service Unavailable");
    let nodes = node(address);
    let mut client = Client::connect(&nodes.socket("a"), "disk").expect("connects");
    for block in 0..2000 {
        client.write(block * BLOCK as u64, &[7; BLOCK]).expect("is written");
    }
    client.flush().expect("is flushed");
    got.recv_timeout(PATIENCE).expect("it was asked");
    let begun = Instant::now();
    while spans_counted(&nodes, "dropped") == 0.0 {
        assert!(begun.elapsed() < PATIENCE, "nothing is counted");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(spans_counted(&nodes, "exported"), 0.0);
    let log = std::fs::read_to_string(nodes.path().join("a.log")).expect("is read");
    assert_eq!(log.matches("the collector did not take spans").count(), 1, "{log}");
}
