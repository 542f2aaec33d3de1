//! What an operator looks at beside status: `helio top`, `helio doctor` and `helio support-bundle`, of a cluster that runs and of one
//! that does not.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tests::cluster::{Up, helio};

/// What the doctor finds; it fails where something is wrong, as the limits of the machine may be.
fn findings(arguments: &[&str]) -> Vec<Value> {
    let mut doctor = Command::new(helio().expect("is built"));
    let output = doctor.args(["doctor", "--json"]).args(arguments).output().expect("it runs");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    })
}

fn of<'a>(findings: &'a [Value], what: &str) -> &'a Value {
    let found = findings.iter().find(|finding| finding["what"] == what);
    found.unwrap_or_else(|| panic!("nothing of {what}: {findings:#?}"))
}

/// Every line of a file of keys and tokens that would give it away.
fn secrets(directory: &Path) -> Vec<String> {
    let mut directories = vec![directory.to_owned()];
    let mut lines = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).expect("is listed").flatten() {
            let path: PathBuf = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.components().any(|part| matches!(part.as_os_str().to_str(), Some("identity" | "authority")))
            {
                let text = String::from_utf8_lossy(&std::fs::read(&path).expect("is read")).into_owned();
                lines.extend(text.lines().filter(|line| line.len() >= 40).map(ToOwned::to_owned));
            }
        }
    }
    lines
}

#[test]
fn a_cluster_is_watched_checked_and_put_together_without_secrets() {
    let mut up = Up::start(&["--providers", "a,b,c"]).expect("a cluster starts");
    up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "b"]).expect("is created");

    let shown = up.run(&["top", "--once", "--sort", "size"]).expect("is shown");
    let has = |words: &[&str]| shown.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(has(&["leader", "answers"]) && has(&["disk", "b", "64 MiB", "local"]), "{shown}");
    let told = up.json(&["top", "--json"]).expect("is told");
    assert_eq!(told["overview"]["rows"][0]["name"], "disk", "{told:#}");
    assert_eq!(told["cluster"]["members"].as_array().map(Vec::len), Some(3), "{told:#}");
    let refused = up.run(&["top"]).expect_err("there is no terminal").to_string();
    assert!(refused.contains("--once"), "{refused}");

    let data = up.data().display().to_string();
    let found = findings(&["--data", &data, "--disk", &data]);
    assert_eq!(of(&found, "voters")["found"], "3 of 3 voters answer; 1 may be lost");
    assert_eq!(of(&found, "volumes")["found"], "1 known");
    assert_eq!(of(&found, "metadata")["level"], "ok");
    let disk: Vec<&Value> = found.iter().filter(|finding| finding["what"] == format!("disk {data}")).collect();
    assert!(
        disk.iter().any(|finding| finding["found"].as_str().is_some_and(|it| it.starts_with("a synced block takes")))
    );

    let file = up.data().with_file_name("bundle.json").display().to_string();
    let said = up.run(&["support-bundle", "--out", &file]).expect("is made");
    assert!(said.contains(&file), "{said}");
    let text = std::fs::read_to_string(&file).expect("is there");
    let bundle: Value = serde_json::from_str(&text).expect("is JSON");
    assert_eq!(bundle["cluster"]["volume"]["disk"]["status"]["owner"], "b", "{bundle:#}");
    assert_eq!(bundle["cluster"]["space"].as_object().map(serde_json::Map::len), Some(3), "{bundle:#}");
    assert!(bundle["files"]["a"].is_object(), "{bundle:#}");
    let metrics: Vec<&Value> =
        bundle["cluster"]["metrics"].as_object().into_iter().flat_map(|all| all.values()).collect();
    let is_text = |text: &&Value| {
        text.as_str().is_some_and(|text| text.contains("helio_node_info{") && text.ends_with("# EOF\n"))
    };
    assert!(metrics.len() == 3 && metrics.iter().all(is_text), "{metrics:#?}");
    let secrets = secrets(&up.data());
    assert!(!secrets.is_empty(), "the nodes have keys");
    assert!(!secrets.iter().any(|secret| text.contains(secret.as_str())), "a key is in the bundle");
    let again = up.run(&["support-bundle", "--out", &file]).expect_err("it exists").to_string();
    assert!(again.contains("--force"), "{again}");

    up.stop().expect("it stops");
    up.run(&["support-bundle", "--out", &file, "--force"]).expect("is made of what is left");
    let bundle: Value = serde_json::from_slice(&std::fs::read(&file).expect("is there")).expect("is JSON");
    assert!(bundle["cluster"]["error"].is_string() || bundle["cluster"]["status"]["error"].is_string(), "{bundle:#}");
    assert!(bundle["files"]["a"].is_object(), "{bundle:#}");
}

/// "ok cluster: none runs here, or none was named", and "nothing is wrong", was said of a cluster that had been named and refused
/// or did not answer.
#[test]
fn a_cluster_that_refuses_or_does_not_answer_is_wrong() {
    let mut up = Up::start(&["--providers", "a"]).expect("a cluster starts");
    let file: Value =
        serde_json::from_slice(&std::fs::read(up.data().join("cluster.json")).expect("it runs")).expect("is JSON");
    let address = file["nodes"][0]["http"].as_str().expect("it has an address").to_owned();
    // Where there is no secret of it.
    let elsewhere = tempfile::tempdir().expect("a directory");
    let elsewhere = elsewhere.path().display().to_string();
    let looked = |arguments: &[&str], words: &str| {
        let found = findings(&[&["--data", elsewhere.as_str()][..], arguments].concat());
        let cluster = of(&found, "cluster");
        assert!(cluster["found"].as_str().is_some_and(|found| found.contains(words)), "{words}: {cluster}");
        cluster["level"].as_str().map(str::to_owned)
    };
    assert_eq!(looked(&[], "none runs here, or none was named").as_deref(), Some("ok"));
    assert_eq!(looked(&["--cluster", &address], "wants its secret").as_deref(), Some("wrong"));
    up.stop().expect("it stops");
    assert_eq!(looked(&["--cluster", &address], "can be reached").as_deref(), Some("wrong"));
}
