//! Real NBD clients against the server: each test skips, saying so, where the client is not installed.

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/client.rs"]
mod common;

use std::process::Stdio;
use std::sync::Arc;

use certificates::Certificates;
use common::{TestServer, limits};
use nbd_frontend::{MemoryDirectory, MemoryExport, TlsMode, TlsOptions};

const SIZE: u64 = 64 << 20;

async fn server() -> TestServer {
    server_with(None).await
}

async fn server_with(tls: Option<TlsOptions>) -> TestServer {
    let exports = ["disk", "other"].map(|name| Arc::new(MemoryExport::new(name, SIZE)));
    TestServer::start_with(Arc::new(MemoryDirectory::new(exports.to_vec())), limits(), tls).await
}

/// Runs a client that succeeds; `None`, with a line on the test's output, where it is not installed.
async fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = output_of(program, arguments).await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Some(text)
}

/// Runs a client that must fail, and returns what it says.
async fn refused(program: &str, arguments: &[&str]) -> Option<String> {
    let output = output_of(program, arguments).await?;
    assert!(!output.status.success(), "{program} {arguments:?} succeeded");
    Some(String::from_utf8_lossy(&output.stderr).into_owned())
}

async fn output_of(program: &str, arguments: &[&str]) -> Option<std::process::Output> {
    let mut command = std::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let client = tokio::task::spawn_blocking(move || command.output());
    match tokio::time::timeout(common::HUNG, client).await.expect("the client ends").expect("no panic") {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: {program} is not installed");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdinfo_sees_exports_flags_and_sizes() {
    let server = server().await;
    for uri in [server.unix_uri("disk"), server.tcp_uri("disk")] {
        let Some(text) = run("nbdinfo", &["--json", &uri]).await else {
            return;
        };
        for expected in [
            "\"export-size\": 67108864",
            "\"can_multi_conn\": true",
            "\"can_df\": true",
            "\"can_fast_zero\": true",
            "\"is_read_only\": false",
            "\"block_size_minimum\": 512",
            "\"can_cache\": true",
            "\"base:allocation\"",
            "\"helio:residency\"",
            "structured",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }
    let map = run("nbdinfo", &["--map=helio:residency", &server.unix_uri("disk")]).await.expect("installed");
    let fields: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(fields[..3], ["0", "67108864", "2"], "all zeroes: {map}");
    let list = run("nbdinfo", &["--list", "--json", &server.unix_uri("")]).await;
    let list = list.expect("installed");
    assert!(list.contains("disk") && list.contains("other"), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdcopy_brings_an_image_in_and_out() {
    let server = server().await;
    let image = server.directory.path().join("in.img");
    let copy = server.directory.path().join("out.img");
    // Data, a hole, and more data: 24 MiB that repeat with no power of two.
    let mut bytes: Vec<u8> = (0..24u32 << 20).map(|i| (i % 251) as u8).collect();
    bytes[8 << 20..12 << 20].fill(0);
    bytes.resize(SIZE as usize, 0);
    std::fs::write(&image, &bytes).expect("writes");
    let (image, copy) = (image.to_str().expect("UTF-8"), copy.to_str().expect("UTF-8"));
    let args = ["--connections=4", "--flush", image, &server.tcp_uri("disk")];
    if run("nbdcopy", &args).await.is_none() {
        return;
    }
    run("nbdcopy", &[&server.unix_uri("disk"), copy]).await;
    assert!(std::fs::read(copy).expect("reads") == bytes, "the image came back changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_reads_writes_zeroes_and_maps() {
    let server = server().await;
    let uri = server.unix_uri("disk");
    let script = [
        "-f",
        "raw",
        "-t",
        "none",
        "-c",
        "write -P 5 512 8192",
        "-c",
        "read -P 5 512 8192",
        "-c",
        "write -f -P 6 1M 64k",
        "-c",
        "write -z 1M 32k",
        "-c",
        "read -P 0 1M 32k",
        "-c",
        "read -P 6 1056k 32k",
        "-c",
        "discard 0 1M",
        "-c",
        "read -P 0 0 1M",
        "-c",
        "write -z -u 2M 4M",
        "-c",
        "flush",
        &uri,
    ];
    let Some(text) = run("qemu-io", &script).await else {
        return;
    };
    assert!(!text.contains("failed"), "{text}");
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]).await;
    let map = map.expect("installed");
    assert!(map.contains("\"zero\": true") && map.contains("\"zero\": false"), "{map}");
    let other = server.tcp_uri("other");
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &uri, &other]).await;
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &uri, &other]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fio_verifies_what_it_wrote() {
    let server = server().await;
    let uri = format!("--uri={}", server.unix_uri("disk"));
    let arguments = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--rw=randrw",
        "--bsrange=512-256k",
        "--bs_unaligned=0",
        "--blockalign=512",
        "--iodepth=32",
        "--size=32m",
        "--verify=crc32c",
        "--verify_fatal=1",
        // Else it leaves its state in the source tree.
        "--verify_state_save=0",
        "--randseed=1",
    ];
    if let Some(text) = run("fio", &arguments).await {
        assert!(text.contains("err= 0"), "{text}");
    }
}

/// The address of an export for libnbd, which finds its certificates in `directory`.
fn nbds(server: &TestServer, export: &str, directory: &std::path::Path) -> String {
    let port = server.server.tcp_address().expect("TCP is on").port();
    format!("nbds://localhost:{port}/{export}?tls-certificates={}", directory.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn libnbd_speaks_tls_and_is_refused_without() {
    let certificates = Certificates::new();
    let server = server_with(Some(certificates.server(TlsMode::Required, true))).await;
    let uri = nbds(&server, "disk", certificates.directory());
    let Some(text) = run("nbdinfo", &["--json", &uri]).await else {
        return;
    };
    assert!(text.contains("\"TLS\": true") && text.contains("\"export-size\": 67108864"), "{text}");
    let list = run("nbdinfo", &["--list", "--json", &nbds(&server, "", certificates.directory())]).await;
    assert!(list.is_some_and(|list| list.contains("other")));

    // Over TCP nobody gets in without TLS, without a certificate, or with one that another authority has signed.
    refused("nbdinfo", &[&server.tcp_uri("disk")]).await;
    let plain = certificates.without_client();
    refused("nbdinfo", &[&nbds(&server, "disk", plain.path())]).await;
    let others = Certificates::new();
    refused("nbdinfo", &[&nbds(&server, "disk", others.directory())]).await;
    // The Unix socket's file says who may connect.
    let text = run("nbdinfo", &["--json", &server.unix_uri("disk")]).await.expect("installed");
    assert!(text.contains("\"TLS\": false"), "{text}");

    let open = server_with(Some(certificates.server(TlsMode::Optional, false))).await;
    for (uri, tls) in [(nbds(&open, "disk", plain.path()), "\"TLS\": true"), (open.tcp_uri("disk"), "\"TLS\": false")] {
        let text = run("nbdinfo", &["--json", &uri]).await.expect("installed");
        assert!(text.contains(tls), "{text}");
    }
    let none = server_with(None).await;
    refused("nbdinfo", &[&nbds(&none, "disk", certificates.directory())]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdcopy_brings_an_image_in_and_out_over_tls() {
    let certificates = Certificates::new();
    let server = server_with(Some(certificates.server(TlsMode::Required, true))).await;
    let image = server.directory.path().join("in.img");
    let copy = server.directory.path().join("out.img");
    let mut bytes: Vec<u8> = (0..24u32 << 20).map(|i| (i % 251) as u8).collect();
    bytes.resize(SIZE as usize, 0);
    std::fs::write(&image, &bytes).expect("writes");
    let (image, copy) = (image.to_str().expect("UTF-8"), copy.to_str().expect("UTF-8"));
    let uri = nbds(&server, "disk", certificates.directory());
    if run("nbdcopy", &["--connections=4", "--flush", image, &uri]).await.is_none() {
        return;
    }
    run("nbdcopy", &["--connections=2", &uri, copy]).await;
    assert!(std::fs::read(copy).expect("reads") == bytes, "the image came back changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_speaks_tls() {
    let certificates = Certificates::new();
    let server = server_with(Some(certificates.server(TlsMode::Required, true))).await;
    let port = server.server.tcp_address().expect("TCP is on").port();
    let dir = certificates.directory().display();
    let object = format!("tls-creds-x509,id=tls0,endpoint=client,dir={dir}");
    let image = |export: &str| format!("driver=nbd,host=localhost,port={port},export={export},tls-creds=tls0");
    let (disk, other) = (image("disk"), image("other"));
    let io = [
        "--object",
        &object,
        "--image-opts",
        "-c",
        "write -P 5 512 3M",
        "-c",
        "read -P 5 512 3M",
        "-c",
        "flush",
        &disk,
    ];
    let Some(text) = run("qemu-io", &io).await else {
        return;
    };
    assert!(!text.contains("failed"), "{text}");
    let convert = ["convert", "--object", &object, "-n", "--image-opts", "--target-image-opts", &disk, &other];
    run("qemu-img", &convert).await;
    run("qemu-img", &["compare", "--object", &object, "--image-opts", &disk, &other]).await;
    let map = run("qemu-img", &["map", "--object", &object, "--output=json", "--image-opts", &disk]).await;
    assert!(map.is_some_and(|map| map.contains("\"zero\": false")));
}
