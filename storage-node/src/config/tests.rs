//! What is read, and what is said about what cannot be.

use super::*;

const LEAST: &str = "name = \"a\"\nprovider = \"eu\"\ndata = \"data\"\nlisten = \"10.0.0.1:10810\"\n";

fn read(text: &str) -> Result<NodeConfig, String> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("node.toml");
    std::fs::write(&path, text).expect("is written");
    let mut config = NodeConfig::read(&path).map_err(|error| error.to_string())?;
    assert_eq!(config.data, directory.path().join("data"), "relative to the file");
    config.data = "data".into();
    Ok(config)
}

#[test]
fn the_least_that_must_be_said_is_enough() {
    let config = read(LEAST).expect("is enough");
    assert_eq!(config.advertised(), config.listen);
    assert_eq!(config.nbd, NbdSettings::default());
    assert_eq!(config.nbd_unix(), PathBuf::from("data/nbd.sock"));
    assert_eq!(config.store, StoreSettings::default());
    assert!(config.admin.http.ip().is_loopback());
    assert_eq!(config.metrics, MetricsSettings::default());
    assert_eq!(config.trace.options(), None);
}

#[test]
fn traces_go_where_it_is_said_and_nowhere_else() {
    let trace = |text: &str| read(&format!("{LEAST}[trace]\n{text}"));
    let options =
        trace("endpoint = \"http://[::1]:4318/v1/traces\"\n").expect("is right").trace.options().expect("is on");
    assert_eq!((options.endpoint.as_str(), options.sample), ("http://[::1]:4318/v1/traces", 0.001));
    assert_eq!(trace("sample = 1\n").expect("is right").trace.options(), None);
    for (text, expected) in [
        ("sample = 0\n", "sample = 0"),
        ("sample = 1.5\n", "up to 1"),
        ("endpoint = \"https://x:4318/v1/traces\"\n", "run a collector on this machine"),
        ("endpoint = \"x:4318\"\n", "http://HOST:PORT/v1/traces"),
    ] {
        let error = trace(text).expect_err("is wrong");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_example_in_the_documentation_says_what_the_defaults_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/node.toml");
    let config = NodeConfig::read(&path).expect("is right");
    assert!(config.store.directories.len() > 1);
    let (directories, capacity_bytes) = (config.store.directories.clone(), config.store.capacity_bytes);
    assert_eq!(config.store, StoreSettings { directories, capacity_bytes, ..StoreSettings::default() });
    assert_eq!(config.admin, AdminSettings::default());
    assert_eq!(config.certificates, CertificateSettings::default());
    assert!(config.advertise.is_some() && config.nbd.tcp.is_some() && !config.routes.is_empty());
    assert_eq!(config.trace.sample, TraceSettings::default().sample);
    assert_eq!(config.metrics.listen, Some("0.0.0.0:9810".parse().expect("an address")), "beyond loopback is fine");
    let tls = config.nbd.tls.expect("is there");
    assert!(tls.mode == TlsUse::default() && tls.client_authority.is_some());
}

#[test]
fn certificates_for_nbd_lie_beside_the_file_and_are_demanded_unless_told_otherwise() {
    let tls = |mode: &str| {
        let text = format!("{LEAST}[nbd.tls]\n{mode}certificate = \"c.pem\"\nkey = \"/etc/k.pem\"\n");
        read(&text).expect("is right").nbd.tls.expect("is there").options()
    };
    let required = tls("").expect("is on");
    assert_eq!((required.mode, required.key), (TlsMode::Required, PathBuf::from("/etc/k.pem")));
    assert!(required.certificate.is_absolute() && required.certificate.ends_with("c.pem"));
    assert_eq!(required.client_authority, None);
    assert_eq!(tls("mode = \"optional\"\n").expect("is on").mode, TlsMode::Optional);
    assert_eq!(tls("mode = \"off\"\n"), None);
}

#[test]
fn how_long_certificates_count_is_said_in_a_unit_and_within_limits() {
    let lifetime = |text: &str| read(&format!("{LEAST}[certificates]\nnode_lifetime = {text}\n"));
    let right = |text: &str| lifetime(text).expect(text).certificates.node_lifetime.as_secs();
    assert_eq!((right("\"10s\""), right("\"36h\""), right("\"90 d\"")), (10, 36 * 3600, 90 * 24 * 3600));
    assert_eq!(read(LEAST).expect("is enough").certificates.node_lifetime, Duration::from_secs(90 * 24 * 3600));
    for odd in ["\"9s\"", "\"3651d\"", "90", "\"d\"", "\"99999999999999999999d\"", "\"3 weeks\"", "\"\""] {
        let error = lifetime(odd).expect_err(odd);
        assert!(error.contains("a time from \"10s\" to \"3650d\"") && error.contains("line 6"), "{odd}: {error}");
    }
}

#[test]
fn mistakes_are_told_with_file_line_and_what_was_expected() {
    for (text, line, expected) in [
        ("name = \"a\"\nprovidr = \"eu\"\n", "line 2", "unknown field `providr`, expected one of `name`, `provider`"),
        ("name = \"a\"\n", "line 1", "missing field `provider`"),
        ("name = \"a b\"\n", "line 1", "contains ' '; use 1 to 63 letters"),
        ("name = 7\n", "line 1", "expected a string"),
        ("name = \"a\"\nprovider\n", "line 2", "expected `=`"),
        (&LEAST.replace("10.0.0.1:10810", "node-1:10810"), "line 4", "is not an address IP:PORT, as in"),
        (&format!("{LEAST}[nbd]\ntcp = 10809\n"), "line 6", "is not an address IP:PORT, as in"),
        (&format!("{LEAST}[nbd.tls]\nkey = \"k\"\n"), "line 5", "missing field `certificate`"),
        (&format!("{LEAST}[nbd.tls]\nmode = \"maybe\"\n"), "line 6", "\"maybe\" is not \"required\", \"optional\" or"),
        (&format!("{LEAST}[admin]\nhttp = \"0.0.0.0:80\"\n"), "line 6", "expected a loopback address"),
        (&format!("{LEAST}[metrics]\nlisten = \":9810\"\n"), "line 6", "is not an address IP:PORT"),
        (&format!("{LEAST}[store]\nsegment_bytes = \"1MiB\"\n"), "line 6", "expected a multiple of 4096"),
        (&format!("{LEAST}[store]\nsegment_bytes = \"64 parsecs\"\n"), "line 6", "is not a size"),
        (&format!("{LEAST}[store]\nmap_cache_bytes = 5\n"), "line 6", "expected at least 1MiB"),
        (&format!("{LEAST}[store]\nengine = \"steam\"\n"), "line 6", "expected one of `auto`, `uring`, `std`"),
        (&format!("{LEAST}[routes]\nb = \"x\"\n"), "line 6", "is not an address IP:PORT"),
    ] {
        let error = read(text).expect_err(text);
        assert!(error.contains("node.toml: TOML parse error at"), "{error}");
        assert!(error.contains(line) && error.contains(expected), "{text}\n{error}");
    }
}

#[test]
fn values_that_do_not_go_together_are_told() {
    for (text, expected) in [
        (LEAST.replace("10.0.0.1", "0.0.0.0"), "add advertise"),
        (LEAST.replace("10810", "0"), "port 0"),
        (format!("{LEAST}[store]\ncapacity_bytes = \"64MiB\"\n"), "less than 8 segments"),
        (format!("{LEAST}[store]\ndirectories = [\"/x\", \"/y\", \"/x\"]\n"), "names /x twice"),
        (format!("{LEAST}[store]\ndirectories = [\"/x\", \"/y\"]\nmap_cache_bytes = \"1MiB\"\n"), "1MiB for each of 2"),
    ] {
        let error = read(&text).expect_err(&text);
        assert!(error.contains("node.toml") && error.contains(expected), "{error}");
    }
    let everywhere = format!("advertise = \"192.0.2.1:10810\"\n{}", LEAST.replace("10.0.0.1", "0.0.0.0"));
    assert_eq!(read(&everywhere).expect("goes together").advertised().to_string(), "192.0.2.1:10810");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = NodeConfig::read(Path::new("nowhere/node.toml")).expect_err("is not there").to_string();
    assert!(error.contains("nowhere/node.toml"), "{error}");
}
