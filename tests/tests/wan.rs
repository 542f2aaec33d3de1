//! `helio up --wan FILE`: links behave as a file says, and as it says later.

use std::fs;
use std::time::Duration;

use tests::cluster::{Up, refusal};
use tests::tools::until;

const PATIENCE: Duration = Duration::from_secs(60);

/// What node a sees of another one: the round trip in milliseconds, and whether it is reachable.
fn seen(up: &Up, name: &str) -> (f64, bool) {
    let status = up.json(&["cluster", "status", "--json"]).expect("tells");
    assert_eq!(status["node"], "a");
    let members = status["members"].as_array().expect("a list");
    let member = members.iter().find(|member| member["name"] == name).expect("is a member");
    (member["rtt_ms"].as_f64().unwrap_or(0.0), member["reachable"].as_bool().expect("is said"))
}

/// Waits until the file of the links has been followed `times` times: a busy machine looks like a partition, for a moment.
fn followed(up: &Up, times: usize) {
    until("the file is followed", PATIENCE, || {
        up.log().expect("is there").matches("the links behave as it says").count() >= times
    });
}

#[test]
fn links_behave_as_a_file_says_and_as_it_says_later() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("wan.toml");
    let write = |text: &str| fs::write(&file, text).expect("is written");
    let far = "rtt_ms = 20\n[[link]]\nbetween = [\"a\", \"c\"]\nrtt_ms = 80\n";
    write(far);
    let up = Up::start(&["--wan", file.to_str().expect("is UTF-8")]).expect("starts");
    followed(&up, 1);
    until("round trips are as the file says", PATIENCE, || {
        let (near, far) = (seen(&up, "b").0, seen(&up, "c").0);
        (20.0..80.0).contains(&near) && far >= 80.0
    });

    write(&format!("{far}partition = true\n"));
    followed(&up, 2);
    until("one of the three is out of the first one's reach", PATIENCE, || !seen(&up, "c").1);
    until("the other one is not", PATIENCE, || seen(&up, "b").1);
    write("rtt = 20\n");
    until("what cannot be understood is told", PATIENCE, || {
        let log = up.log().expect("is there");
        log.contains("the links stay as they are") && log.contains("unknown field `rtt`")
    });
    assert!(!seen(&up, "c").1, "as before");
    write("rtt_ms = 20\n");
    until("it is back, and near", PATIENCE, || matches!(seen(&up, "c"), (rtt, true) if rtt < 80.0));
}

#[test]
fn a_file_that_says_nothing_sensible_is_refused_before_anything_starts() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("wan.toml");
    let data = directory.path().join("data");
    let (file_text, data_text) = (file.to_str().expect("is UTF-8"), data.to_str().expect("is UTF-8"));
    let refused = || refusal(&["up", "--nbd-port", "0", "--http-port", "0", "--data", data_text, "--wan", file_text]);
    assert!(refused().contains("wan.toml cannot be read"));
    fs::write(&file, "[[link]]\nbetween = [\"a\", \"d\"]\n").expect("is written");
    let said = refused();
    assert!(said.contains("wan.toml: [[link]] number 1: \"d\" is not a provider; there are a, b, c"), "{said}");
}
