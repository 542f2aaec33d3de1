//! The dashboard of a real cluster in a real browser: what it shows is what the API says, what is clicked happens, nothing comes from elsewhere.
//!
//! Pictures of it, at three widths, are left in `target/dashboard` to be looked at. Without Chromium there is only what needs none.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tests::browser::{Browser, chromium};
use tests::cluster::Up;
use tests::http::Admin;
use tests::nbd_client::Client;
use tests::nodes::Nodes;
use tests::workload::fill;

/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(60);
const WIDTHS: [u32; 3] = [400, 1200, 2400];
const MIB: u64 = 1 << 20;

/// The admin API of a node.
fn admin(data: &Path, node: &str) -> Admin {
    Admin::find(data, node).expect("the cluster says where it is")
}

/// The page of a node, as `helio dashboard` prints it.
fn page(admin: &Admin) -> String {
    format!("http://{admin}/#secret={}", admin.secret)
}

/// One request of HTTP, as it is written here: its status, its headers in lower case, its body.
fn request(admin: &Admin, head: &str, body: &str) -> (u16, String, String) {
    ask(admin, &format!("{head}\r\n{}", admin.header()), body)
}

/// The same without the secret.
fn ask(admin: &Admin, head: &str, body: &str) -> (u16, String, String) {
    let mut connection = TcpStream::connect(&admin.address).expect("connects");
    connection.set_read_timeout(Some(PATIENCE)).expect("is set");
    let length = body.len();
    write!(connection, "{head}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}").expect("is sent");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("is answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("is HTTP");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("has a status");
    (status, head.to_lowercase(), body.to_owned())
}

fn get(address: &Admin, path: &str) -> Value {
    let (status, _, body) = request(address, &format!("GET {path} HTTP/1.0\r\nHost: {address}"), "");
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).expect("is JSON")
}

fn pictures() -> PathBuf {
    // Tests lie in `deps/` of a profile's directory in `target`.
    let test = std::env::current_exe().expect("has a path");
    let directory = test.ancestors().nth(3).expect("is in target").join("dashboard");
    std::fs::create_dir_all(&directory).expect("is made");
    directory
}

/// Takes pictures at all widths in both themes; nothing may reach beyond the right edge.
fn picture(browser: &mut Browser, name: &str) {
    for theme in ["light", "dark"] {
        browser.value(&format!("document.querySelector('#theme input[value={theme}]').click()")).expect("is chosen");
        for width in WIDTHS {
            let file = pictures().join(format!("{name}-{width}-{theme}.png"));
            let beyond = browser.picture(width, &file).expect("is taken");
            assert!(beyond <= 0, "{} reaches {beyond} pixels beyond its edge", file.display());
        }
    }
    browser.value("document.querySelector('#theme input[value=system]').click()").expect("is chosen");
    browser.resize(1200, 900).expect("is set");
}

/// No script failed, nothing was refused, and nothing was asked of anybody but the node.
fn all_is_well(browser: &mut Browser, address: &Admin) {
    let complaints = browser.complaints().expect("are told");
    assert!(complaints.is_empty(), "{complaints:#?}");
    let own = format!("http://{address}/");
    let foreign: Vec<String> = browser.requests().into_iter().filter(|url| !url.starts_with(&own)).collect();
    assert!(foreign.is_empty(), "asked elsewhere: {foreign:?}");
}

fn text(browser: &mut Browser, selector: &str) -> String {
    let told = browser.value(&format!("document.querySelector({selector:?})?.innerText ?? ''")).expect("is told");
    told.as_str().expect("is text").to_owned()
}

/// Waits until an element shows a text.
fn shows(browser: &mut Browser, selector: &str, words: &str) {
    let is_so = format!("(document.querySelector({selector:?})?.textContent ?? '').includes({words:?})");
    browser.until(&format!("{selector} shows {words:?}"), PATIENCE, &is_so).expect("does");
}

fn click(browser: &mut Browser, selector: &str) {
    let is_there = format!(
        "(() => {{ const it = document.querySelector({selector:?}); return Boolean(it && !it.disabled && it.checkVisibility()); }})()"
    );
    browser.until(&format!("{selector} can be clicked"), PATIENCE, &is_there).expect("can");
    browser.value(&format!("document.querySelector({selector:?}).click()")).expect("is clicked");
}

fn button(browser: &mut Browser, place: &str, words: &str) {
    let find = format!(
        "[...document.querySelectorAll('{place} button')].find((it) => it.textContent.includes({words:?}) && !it.disabled && !it.hidden)"
    );
    browser.until(&format!("there is a button {words:?}"), PATIENCE, &format!("Boolean({find})")).expect("there is");
    browser.value(&format!("{find}.click()")).expect("is clicked");
}

/// What the page foresees otherwise than `cases` say.
const FORECASTS: &str = r#"import("/dashboard/forecast.js").then(({ forecast }) => cases.flatMap(({ what, steps, over }) => {
  const look = ({ to_send, before, written = 0 }) => ({
    from: "a",
    before: { toSend: before * 1e6, carried: 7 },
    now: { toSend: to_send * 1e6, carried: 7 + (before + written - to_send) * 1e6 },
  });
  const told = forecast(steps.map(({ to, volumes }) => ({ to, looks: volumes.map(look) })), 2);
  const rounded = told.map((at) => (at === null ? null : Math.round(at * 1000) / 1000));
  return JSON.stringify(rounded) === JSON.stringify(over) ? [] : [`${what}: ${JSON.stringify(rounded)}`];
}))"#;

fn search(browser: &mut Browser, words: &str) {
    let set = "it.dispatchEvent(new Event('input'));";
    let script = format!("(() => {{ const it = document.querySelector('#search'); it.value = {words:?}; {set} }})()");
    browser.value(&script).expect("is searched");
}

#[test]
fn other_sites_are_kept_out_and_the_page_may_load_nothing_but_itself() {
    let up = Up::start(&[]).expect("starts");
    let address = admin(&up.data(), "a");
    let (status, head, body) = request(&address, &format!("GET / HTTP/1.1\r\nHost: {address}"), "");
    assert_eq!(status, 200);
    assert!(body.starts_with("<!doctype html>"), "{body}");
    for (header, words) in [
        ("content-security-policy", "default-src 'none'; script-src 'self'"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "deny"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        let line = head.lines().find(|line| line.starts_with(header)).unwrap_or_else(|| panic!("{header} in {head}"));
        assert!(line.contains(words), "{line}");
    }
    let create = |name: &str, host: &str, more: &str| {
        let body = json!({ "name": name, "size_bytes": MIB }).to_string();
        request(&address, &format!("POST /v1/volumes HTTP/1.1\r\nHost: {host}\r\n{more}"), &body).0
    };
    let json = "Content-Type: application/json";
    assert_eq!(create("v1", "example.com", json), 421, "a name that was made to point here");
    assert_eq!(create("v2", &address.address, &format!("{json}\r\nOrigin: http://example.com")), 403);
    assert_eq!(create("v3", &address.address, &format!("{json}\r\nOrigin: null")), 403);
    assert_eq!(create("v4", &address.address, "Content-Type: text/plain"), 415, "what a form can send");
    assert_eq!(create("v5", &address.address, &format!("{json}\r\nSec-Fetch-Site: cross-site")), 403);
    assert_eq!(get(&address, "/v1/volumes"), json!([]), "nothing of that was done");
    assert_eq!(create("own", &address.address, &format!("{json}\r\nOrigin: http://{address}")), 200, "the page itself");
    assert_eq!(create("command", &address.address, json), 200, "the command line");
    let (status, _, body) = request(&address, "GET /v1/volumes HTTP/1.1\r\nHost: example.com:80", "");
    assert_eq!(status, 421);
    assert!(body.contains("reached as localhost"), "{body}");
}

#[test]
fn what_it_asks_for_tells_what_is_so() {
    let up = Up::start(&["--rtt", "10"]).expect("starts");
    let address = admin(&up.data(), "b");
    for (name, owner) in [("one", "a"), ("two", "b"), ("three", "c")] {
        up.run(&["volume", "create", name, "--size", "64M", "--owner", owner]).expect("is created");
    }
    let written: Vec<u8> = (0..1024).flat_map(|block| fill(1, block, 1)).collect();
    let mut client = Client::connect(&up.socket("a"), "one").expect("connects");
    client.write(8 * MIB, &written).expect("is written");
    client.flush().expect("is flushed");
    tests::tools::until("b and c have everything", PATIENCE, || {
        let overview = get(&address, "/v1/overview?search=ONE");
        let row = &overview["rows"][0];
        assert_eq!((&overview["volumes"], &overview["matching"], &row["name"]), (&json!(3), &json!(1), &json!("one")));
        row["mapped_bytes"] == json!(4 * MIB)
            && row["replicas"].as_array().expect("a list").iter().all(|it| it["bytes_behind"] == 0)
    });
    let names = |query: &str| {
        let told = get(&address, &format!("/v1/overview?{query}"));
        let rows = told["rows"].as_array().expect("a list").clone();
        rows.iter().map(|row| row["name"].as_str().expect("text").to_owned()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names("sort=owner&descending=true"), "three two one");
    assert_eq!(names("limit=1&offset=1"), "three");
    assert_eq!(names("owner=b"), "two");
    assert_eq!(names("waiting=true"), "");
    let (status, _, body) = request(&address, &format!("GET /v1/overview?sort=taste HTTP/1.0\r\nHost: {address}"), "");
    assert!(status == 400 && body.contains("use name, owner"), "{body}");
    for node in ["a", "b"] {
        let map = get(&address, &format!("/v1/volumes/one/residency?node={node}&parts=64"));
        let local: Vec<u64> = map["local"].as_array().expect("a list").iter().filter_map(Value::as_u64).collect();
        let expected: Vec<u64> = (0..64).map(|part| if (8..12).contains(&part) { MIB } else { 0 }).collect();
        assert_eq!(local, expected, "at {node}");
        let told = (&map["local_bytes"], &map["stale_bytes"], &map["exact"], &map["owner"]);
        assert_eq!(told, (&json!(4 * MIB), &json!(0), &json!(true), &json!(node == "a")));
    }
    let (status, ..) =
        request(&address, &format!("GET /v1/volumes/one/residency?parts=4097 HTTP/1.0\r\nHost: {address}"), "");
    assert_eq!(status, 400);
    assert_eq!(get(&address, "/v1/volumes/one/timeline")["changes"], json!([]));
    up.run(&["volume", "migrate", "one", "--to", "c"]).expect("moves");
    let timeline = get(&address, "/v1/volumes/one/timeline");
    let change = &timeline["changes"][0];
    assert_eq!((&change["from"], &change["to"], &change["outcome"]), (&json!("a"), &json!("c"), &json!("moved")));
    let phases = change["phases"].as_array().expect("a list");
    let names: Vec<&str> = phases.iter().filter_map(|phase| phase["name"].as_str()).collect();
    assert_eq!(names, ["asking", "telling", "freezing", "preparing", "proposing", "releasing"]);
    let took: f64 = phases.iter().filter_map(|phase| phase["took_ms"].as_f64()).sum();
    let whole = change["took_ms"].as_f64().expect("a number");
    assert!((took - whole).abs() < 1.0, "the phases follow each other: {took} of {whole}");
    let held: f64 = phases
        .iter()
        .filter(|phase| phase["holds_writers"] == true)
        .filter_map(|phase| phase["took_ms"].as_f64())
        .sum();
    assert!((held - change["held_ms"].as_f64().expect("a number")).abs() < 1.0);
}

/// The first request for a handover is answered as one is that waits for the new owner longer than an answer may take. The page showed that as a
/// failure, of a move that went on.
const IMPATIENT: &str = r#"(() => {
  const ask = window.fetch;
  window.asked = 0;
  const kind = "Busy", message = "volume disk goes to node b when that holds everything, which it does not yet: the handover goes on, and `--cancel` ends it";
  window.fetch = (path, options) => {
    if (path.endsWith("/migrate") && options.method === "POST" && ++window.asked === 1)
      return Promise.resolve(new Response(JSON.stringify({ kind, message }), { status: 409 }));
    return ask(path, options);
  };
})()"#;

/// A port that stays the same whatever is behind it: what `ssh -L` is, and a node that is started again.
struct Forward {
    address: String,
    target: Arc<Mutex<Option<String>>>,
}

impl Forward {
    fn to(target: &str) -> Forward {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let address = listener.local_addr().expect("has an address").to_string();
        let forward = Forward { address, target: Arc::new(Mutex::new(Some(target.to_owned()))) };
        let target = forward.target.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let Some(address) = target.lock().expect("is held by nobody").clone() else { continue };
                let Ok(there) = TcpStream::connect(address) else { continue };
                for (from, to) in [(&connection, &there), (&there, &connection)] {
                    let (mut from, mut to) = (from.try_clone().expect("is copied"), to.try_clone().expect("is copied"));
                    std::thread::spawn(move || {
                        // However it ends, both ends are told.
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                    });
                }
            }
        });
        forward
    }

    fn point(&self, target: Option<String>) {
        *self.target.lock().expect("is held by nobody") = target;
    }
}

#[test]
fn it_shows_what_the_api_says_and_moves_a_volume_when_it_is_confirmed() {
    let Some(program) = chromium() else {
        return eprintln!("skipped: there is no Chromium; `make tools` installs it, HELIO_CHROMIUM names another one");
    };
    let mut up = Up::start(&["--rtt", "10"]).expect("starts");
    let node = admin(&up.data(), "a");
    let forward = Forward::to(&node.address);
    let address = Admin { address: forward.address.clone(), ..node };
    let mut browser = Browser::start(&program).expect("starts");

    // Whoever has no secret is told so, and nothing else.
    browser.open(&format!("http://{address}/"), 1200, "light").expect("is shown");
    browser.until("it says so", PATIENCE, "document.querySelector('#outage')?.hidden === false").expect("does");
    let said = text(&mut browser, "#outage");
    assert!(said.contains("no secret of the node") && said.contains("helio dashboard"), "{said}");
    assert_eq!(browser.value("document.querySelectorAll('#nodes tbody tr').length").expect("is counted"), 0);
    browser.picture(1200, &pictures().join("no-secret-1200-light.png")).expect("is taken");
    browser.forget();
    // The link in the same tab.
    browser.value(&format!("location.href = '{}'", page(&address))).expect("is gone to");
    browser.until("it goes on", PATIENCE, "document.querySelector('#outage').hidden").expect("does");
    assert_eq!(browser.value("location.hash").expect("is told"), "#/", "the secret is not left in the address");
    browser.forget();
    shows(&mut browser, "#list .empty", "There is no volume yet");
    picture(&mut browser, "empty");

    for number in 0..120 {
        let body = json!({ "name": format!("volume-{number:03}"), "size_bytes": (number + 1) * MIB, "owner": "b" })
            .to_string();
        let head = format!("POST /v1/volumes HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json");
        assert_eq!(request(&address, &head, &body).0, 200);
    }
    up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    let mut client = Client::connect(&up.socket("a"), "disk").expect("connects");
    client.write(0, &(0..2048).flat_map(|block| fill(1, block, 1)).collect::<Vec<u8>>()).expect("is written");
    client.flush().expect("is flushed");

    // All volumes, a page of them at a time.
    shows(&mut browser, "#volumes-summary", "121 volumes");
    assert_eq!(browser.value("document.querySelectorAll('#list tbody tr').length").expect("is counted"), 50);
    shows(&mut browser, "#pages", "1 to 50 of 121");
    button(&mut browser, "#pages", "After");
    shows(&mut browser, "#pages", "51 to 100 of 121");
    button(&mut browser, "#list", "Size");
    shows(&mut browser, "#list tbody tr", "volume-119");
    assert_eq!(
        browser.value("document.querySelector('#list th[aria-sort]').textContent.trim()").expect("is told"),
        "Size▾"
    );
    browser.value("document.querySelector('#search').focus()").expect("is there");
    browser.write("DIS").expect("is written");
    shows(&mut browser, "#list tbody tr", "disk");
    assert_eq!(browser.value("document.querySelectorAll('#list tbody tr').length").expect("is counted"), 1);
    // Its replicas may have yet to hear of it.
    shows(&mut browser, "#list tbody tr", "in order");
    let row = text(&mut browser, "#list tbody tr");
    for words in ["64 MiB", "local"] {
        assert!(row.contains(words), "{words} in {row}");
    }
    search(&mut browser, "");
    shows(&mut browser, "#pages", "1 to 50 of 121");

    // The nodes are those of the API.
    let cluster = get(&address, "/v1/cluster");
    for (index, member) in cluster["members"].as_array().expect("a list").iter().enumerate() {
        let row = text(&mut browser, &format!("#nodes tbody tr:nth-child({})", index + 1));
        assert!(row.contains(member["name"].as_str().expect("text")) && row.contains("answers"), "{row}");
        assert_eq!(row.contains("★ leads"), member["leader"] == true, "{row}");
    }
    assert_eq!(browser.value("document.querySelectorAll('#links tbody tr').length").expect("is counted"), 6);
    assert_eq!(browser.value("document.querySelectorAll('#ring .node').length").expect("is counted"), 3);
    picture(&mut browser, "volumes");

    // One volume.
    search(&mut browser, "disk");
    click(&mut browser, "#list a[href='#/volume/disk']");
    shows(&mut browser, "#volume-title", "disk");
    assert_eq!(browser.value("document.activeElement.id").expect("is told"), "volume", "the focus follows");
    shows(&mut browser, "#facts", "a, epoch 1");
    shows(&mut browser, "#replicas tbody tr:nth-child(2)", "has everything");
    let map = get(&address, "/v1/volumes/disk/residency?node=b");
    assert_eq!(map["local_bytes"], json!(8 * MIB));
    let said = "[...document.querySelectorAll('#maps canvas')].map((it) => it.getAttribute('aria-label')).join('|')";
    browser
        .until(
            "the pictures tell of 8 MiB",
            PATIENCE,
            &format!("{said}.split('8 MiB here, all there is').length === 4"),
        )
        .expect("do");
    let painted = "(() => { const it = document.querySelector('#maps canvas'); const dots = it.getContext('2d').getImageData(0, 0, it.width, it.height).data; return new Set([...Array(dots.length / 4).keys()].map((at) => dots.slice(4 * at, 4 * at + 4).join())).size; })()";
    assert!(browser.value(painted).expect("is told").as_u64().expect("a number") >= 3, "something is drawn");

    // It is moved when it is confirmed, and not before.
    button(&mut browser, "#actions", "Move");
    browser.press("Escape", 27).expect("is pressed");
    browser.until("the question is gone", PATIENCE, "!document.querySelector('#dialog').open").expect("is");
    assert_eq!(get(&address, "/v1/volumes/disk")["owner"], "a");
    button(&mut browser, "#actions", "Move");
    click(&mut browser, "#dialog input[name=to][value=b]");
    click(&mut browser, "#dialog input[name=how][value=synced]");
    browser.picture(1200, &pictures().join("move-1200-light.png")).expect("is taken");
    browser.value(IMPATIENT).expect("is in between");
    click(&mut browser, "#dialog-yes");
    shows(&mut browser, "#tasks", "disk is at b: writers were held for");
    assert_eq!(browser.value("window.asked").expect("is told"), 2, "times");
    assert_eq!(get(&address, "/v1/volumes/disk")["owner"], "b");
    shows(&mut browser, "#facts", "b, epoch 2");
    shows(&mut browser, "#timeline .change", "a → b");
    shows(&mut browser, "#timeline .phases", "proposing");

    // A snapshot, a size that is none and one that is, a move that waits for a write.
    button(&mut browser, "#actions", "snapshot");
    browser.value("document.querySelector('#dialog-body input').select()").expect("is selected");
    browser.write("monday").expect("is written");
    browser.press("Enter", 13).expect("is pressed");
    shows(&mut browser, "#tasks", "disk@monday is made");
    shows(&mut browser, "#snapshots", "disk@monday");
    button(&mut browser, "#actions", "Resize");
    browser.value("document.querySelector('#dialog-body input').select()").expect("is selected");
    browser.write("large").expect("is written");
    click(&mut browser, "#dialog-yes");
    shows(&mut browser, "#dialog-problem", "is no size");
    browser.value("document.querySelector('#dialog-body input').select()").expect("is selected");
    browser.write("128 MiB").expect("is written");
    click(&mut browser, "#dialog-yes");
    shows(&mut browser, "#tasks", "disk has 128 MiB now");
    assert_eq!(get(&address, "/v1/volumes/disk")["size_bytes"], json!(128 * MIB));
    button(&mut browser, "#actions", "Move");
    click(&mut browser, "#dialog input[name=how][value=on-write]");
    click(&mut browser, "#dialog-yes");
    shows(&mut browser, "#facts", "Goes by itself");
    button(&mut browser, "#actions", "Take the move back");
    click(&mut browser, "#dialog-yes");
    shows(&mut browser, "#tasks", "by a write any more");

    // What the node refuses is said as it says it.
    button(&mut browser, "#actions", "Take over");
    click(&mut browser, "#dialog-yes");
    browser.until("nothing happens", PATIENCE, "document.querySelector('#dialog').open").expect("does not");
    browser.value("document.querySelector('#dialog-body input[type=text]').focus()").expect("is there");
    browser.write("dis").expect("is written");
    click(&mut browser, "#dialog-yes");
    shows(&mut browser, "#dialog-problem", "Type disk");
    browser.press("Escape", 27).expect("is pressed");
    picture(&mut browser, "volume");
    all_is_well(&mut browser, &address);

    // Everything that a node owns goes elsewhere.
    browser.value("location.hash = '#/'").expect("is gone to");
    button(&mut browser, "#nodes tr:nth-child(2)", "Drain");
    shows(&mut browser, "#dialog-body", "121 steps");
    shows(&mut browser, "#dialog-body", "ll be over");
    browser
        .value(&format!("window.cases = {}", include_str!("../../storage-node/src/cli/drain/cases.json")))
        .expect("is told");
    assert_eq!(browser.value(FORECASTS).expect("is foreseen"), serde_json::json!([]), "as the command tells it");
    browser.press("Escape", 27).expect("is pressed");
    all_is_well(&mut browser, &address);

    // The node is gone for a while, and the page goes on by itself.
    forward.point(None);
    up.stop().expect("stops");
    browser.until("it says so", PATIENCE, "!document.querySelector('#outage').hidden").expect("does");
    let said = text(&mut browser, "#outage");
    assert!(said.contains("Node a does not answer") && said.contains("old"), "{said}");
    browser.picture(1200, &pictures().join("outage-1200-light.png")).expect("is taken");
    up.restart().expect("starts");
    forward.point(Some(admin(&up.data(), "a").address));
    browser.until("it goes on", PATIENCE, "document.querySelector('#outage').hidden").expect("does");
    browser.forget();
    shows(&mut browser, "#volumes-summary", "121 volumes");
    all_is_well(&mut browser, &address);
}

/// The size that stood there was rounded to three figures: with nothing typed, 10.37 GiB became "10.4 GiB", which is no
/// multiple of 512 and was refused, and 10.04 GiB became "10 GiB", of which it was said that it is smaller. So was "1.1T" refused.
#[test]
fn a_size_is_offered_as_it_is_and_one_with_a_fraction_is_taken() {
    let Some(program) = chromium() else {
        return eprintln!("skipped: there is no Chromium; `make tools` installs it, HELIO_CHROMIUM names another one");
    };
    let up = Up::start(&["--providers", "a"]).expect("starts");
    let address = admin(&up.data(), "a");
    // 10.37 GiB, to the next sector.
    let size = 11_134_703_104u64;
    let body = json!({ "name": "disk", "size_bytes": size }).to_string();
    let head = format!("POST /v1/volumes HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json");
    assert_eq!(request(&address, &head, &body).0, 200);
    let mut browser = Browser::start(&program).expect("starts");
    browser.open(&page(&address), 1200, "light").expect("is shown");
    browser.until("the secret is taken", PATIENCE, "location.hash === '#/'").expect("is");
    let read = r#"import("/dashboard/format.js").then(({ sizeOf, sizeText }) => [
      ...["1.1T", "10.4 GiB", "512M", "1", "0.5k", "10G", "1.5x"].map(sizeOf),
      ...[10737418240, 11134703104, 10780368384, 1536, 512].map(sizeText),
    ])"#;
    let expected = json!([
        1_209_462_790_656u64,
        11_166_915_072u64,
        512 * MIB,
        512,
        512,
        10_240 * MIB,
        null,
        "10 GiB",
        "11134703104",
        "10780368384",
        "1.5 KiB",
        "512 B",
    ]);
    assert_eq!(browser.value(read).expect("are read"), expected);

    browser.value("location.hash = '#/volume/disk'").expect("is gone to");
    button(&mut browser, "#actions", "Resize");
    shows(&mut browser, "#dialog-body", "It has 10.4 GiB");
    click(&mut browser, "#dialog-yes");
    shows(&mut browser, "#tasks", "disk has 10.4 GiB now");
    assert_eq!(get(&address, "/v1/volumes/disk")["size_bytes"], json!(size), "nothing was typed");
    button(&mut browser, "#actions", "Resize");
    browser.value("document.querySelector('#dialog-body input').select()").expect("is selected");
    browser.write("1.1T").expect("is written");
    click(&mut browser, "#dialog-yes");
    shows(&mut browser, "#tasks", "disk has 1.1 TiB now");
    all_is_well(&mut browser, &address);
}

#[test]
fn a_lost_owner_is_shown_and_its_volume_taken_over_when_its_name_is_typed() {
    let Some(program) = chromium() else {
        return eprintln!("skipped: there is no Chromium; `make tools` installs it, HELIO_CHROMIUM names another one");
    };
    let mut nodes = Nodes::start(&["a", "b", "c"]).expect("start");
    nodes.run("a", &["volume", "create", "disk", "--size", "16M", "--owner", "a"]).expect("is created");
    let address = admin(&nodes.path().join("b"), "b");
    let mut browser = Browser::start(&program).expect("starts");
    browser.open(&page(&address), 1200, "dark").expect("is shown");
    browser.until("the secret is taken", PATIENCE, "location.hash === '#/'").expect("is");
    browser.value("location.hash = '#/volume/disk'").expect("is gone to");
    shows(&mut browser, "#facts", "a, epoch 1");
    browser
        .until(
            "b has everything",
            PATIENCE,
            "(document.querySelector('#replicas tbody tr')?.textContent ?? '').includes('has everything')",
        )
        .expect("has");
    nodes.kill("a").expect("runs");
    shows(&mut browser, "#nodes tbody tr", "does not answer");
    shows(&mut browser, "#volume-problem", "the owner of volume disk, node a, does not answer");
    shows(&mut browser, "#volume-problem", "What is shown beneath was told");
    picture(&mut browser, "lost");
    button(&mut browser, "#actions", "Take over");
    browser.value("document.querySelector('#dialog-body input[type=text]').focus()").expect("is there");
    browser.write("disk").expect("is written");
    browser.press("Enter", 13).expect("is pressed");
    shows(&mut browser, "#tasks", "disk is at");
    shows(&mut browser, "#facts", "epoch 2");
    shows(&mut browser, "#timeline .change", "takeover");
    let change = get(&address, "/v1/volumes/disk/timeline")["changes"][0].clone();
    assert_eq!(
        (&change["kind"], &change["from"], &change["outcome"]),
        (&json!("takeover"), &json!("a"), &json!("moved"))
    );
    let phases = change["phases"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|phase| phase["name"].as_str())
        .collect::<Vec<_>>();
    // Before that it is waited until the lease is out, unless the browser took longer to come to this.
    assert!(phases.contains(&"proposing"), "{phases:?}");
    assert_ne!(get(&address, "/v1/volumes/disk")["owner"], "a");
}

/// A node whose disk had failed looked as well as the others, and what nobody served waited like what is a second behind.
#[test]
fn a_store_that_has_failed_and_an_owner_that_has_stepped_down_are_shown_with_what_to_do() {
    let Some(program) = chromium() else {
        return eprintln!("skipped: there is no Chromium; `make tools` installs it, HELIO_CHROMIUM names another one");
    };
    let mut nodes = Nodes::none().expect("a directory");
    let stores = ["first", "second"].map(|name| nodes.path().join(name));
    let [first, second] = stores.each_ref().map(|path| path.display().to_string());
    // The same capacity, so that volumes go to them in turns.
    let store = format!("directories = [\"{first}\", \"{second}\"]\ncapacity_bytes = \"128MiB\"\n");
    nodes.add_with("a", &store).expect("starts");
    nodes.add("b").expect("joins");
    for name in ["one", "two"] {
        nodes.run("a", &["volume", "create", name, "--size", "16M", "--owner", "a"]).expect("is created");
    }
    let space = nodes.json("a", &["node", "space", "--json"]).expect("tells");
    let volumes = space["volumes"].as_array().expect("a list").clone();
    let lost = volumes.iter().find(|volume| volume["store"] == first).expect("it has one")["volume"].clone();
    let lost = lost.as_str().expect("text");
    nodes.kill("a").expect("runs");
    std::fs::rename(&stores[0], nodes.path().join("gone")).expect("is taken out");
    nodes.start_node("a").expect("starts with the other one");

    let address = admin(&nodes.path().join("b"), "b");
    let mut browser = Browser::start(&program).expect("starts");
    browser.open(&page(&address), 1200, "light").expect("is shown");
    shows(&mut browser, "#nodes tbody tr:nth-child(1)", "a store has failed");
    shows(&mut browser, "#nodes tbody tr:nth-child(1)", &format!("{first} cannot be opened"));
    shows(&mut browser, "#nodes tbody tr:nth-child(2)", "answers");
    shows(&mut browser, "#list", "not served");
    shows(
        &mut browser,
        "#list",
        "node a, has stepped down, since its store there has failed: nothing is read or written until",
    );
    shows(&mut browser, "#list", &format!("`helio volume takeover {lost}`"));
    picture(&mut browser, "failed-store");
    click(&mut browser, &format!("#list a[href='#/volume/{lost}']"));
    shows(&mut browser, "#volume-problem", "has stepped down");
    picture(&mut browser, "stepped-down");
    button(&mut browser, "#actions", "Take over");
    shows(&mut browser, "#dialog-body", "unless its store has failed");
    browser.value("document.querySelector('#dialog-body input[type=text]').focus()").expect("is there");
    browser.write(lost).expect("is written");
    browser.press("Enter", 13).expect("is pressed");
    shows(&mut browser, "#tasks", &format!("{lost} is at"));
    assert_eq!(get(&address, &format!("/v1/volumes/{lost}"))["owner"], "b");
    shows(&mut browser, "#facts", "b, epoch 2");
}
