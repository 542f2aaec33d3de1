//! NBD over TLS as an operator has it: `helio up` with certificates, the clients of others, and our own import and export.

use std::path::Path;
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::Value;
use tests::cluster::Up;
use tests::tools::run;

/// An authority in `ca-cert.pem`, and a server's certificate and key beside it.
fn certificates(directory: &Path) {
    let mut authority = CertificateParams::new(vec![]).expect("no names");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("is signed");
    let key = KeyPair::generate().expect("a key");
    let server = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let server = server.signed_by(&key, &authority).expect("is signed");
    for (name, text) in
        [("ca-cert.pem", authority.pem()), ("server-cert.pem", server.pem()), ("server-key.pem", key.serialize_pem())]
    {
        std::fs::write(directory.join(name), text).expect("is written");
    }
}

fn nbdinfo(uri: &str) -> anyhow::Result<Value> {
    let text = run(Command::new("nbdinfo").args(["--json", uri]))?;
    Ok(serde_json::from_str(&text)?)
}

#[test]
fn a_cluster_that_demands_tls_serves_it_and_nothing_else_over_tcp() {
    let directory = tempfile::tempdir().expect("a directory");
    certificates(directory.path());
    let file = |name: &str| directory.path().join(name).to_str().expect("is UTF-8").to_owned();
    let (certificate, key) = (file("server-cert.pem"), file("server-key.pem"));
    let options = ["--providers", "a,b", "--nbd-tls-certificate", &certificate, "--nbd-tls-key", &key];
    let up = Up::start(&options).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");

    for provider in ["a", "b"] {
        let [tcp, unix] = up.uris(provider, "disk").expect("listens");
        let tls = format!(
            "{}?tls-certificates={}",
            tcp.replace("nbd://127.0.0.1", "nbds://localhost"),
            directory.path().display()
        );
        assert_eq!(nbdinfo(&tls).expect("is served")["TLS"], Value::Bool(true));
        nbdinfo(&tcp).expect_err("is refused");
        assert_eq!(
            nbdinfo(&unix).expect("is served")["TLS"],
            Value::Bool(false),
            "the socket's file says who may connect"
        );
    }

    // An image goes in with libnbd, from there into another volume with our client, and out again.
    let image = directory.path().join("image");
    let bytes: Vec<u8> = (0..64u32 << 20).map(|at| if at < 24 << 20 { (at % 251) as u8 } else { 0 }).collect();
    std::fs::write(&image, &bytes).expect("is written");
    let [tcp, _] = up.uris("a", "disk").expect("listens");
    let tls = format!(
        "{}?tls-certificates={}",
        tcp.replace("nbd://127.0.0.1", "nbds://localhost"),
        directory.path().display()
    );
    run(Command::new("nbdcopy").arg("--flush").arg(&image).arg(&tls)).expect("is copied");
    up.run(&["volume", "import", "copy", &tls]).expect("is imported over TLS");
    let out = directory.path().join("out");
    up.run(&["volume", "export", "copy", out.to_str().expect("is UTF-8")]).expect("is exported");
    assert!(std::fs::read(&out).expect("is there") == bytes, "it came back changed");
    let refused = up.run(&["volume", "import", "another", &tcp]).expect_err("is refused").to_string();
    assert!(refused.contains("nbds://"), "{refused}");
}

#[test]
fn certificates_that_cannot_be_used_are_told_with_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    certificates(directory.path());
    let file = |name: &str| directory.path().join(name).to_str().expect("is UTF-8").to_owned();
    let options =
        ["--providers", "a", "--nbd-tls-certificate", &file("ca-cert.pem"), "--nbd-tls-key", &file("server-key.pem")];
    let refused = Up::start(&options).map(drop).expect_err("does not start").to_string();
    assert!(refused.contains("server-key.pem") && refused.contains("its own key"), "{refused}");
}
