//! The description of the admin API, `GET /v1/openapi.json`, is true: it has every route, what a node is asked and answers here is as it
//! says, and what is answered has nothing that it leaves out. `docs/openapi.json` is the same:
//! `HELIO_GOLDEN=write cargo nextest run -p tests openapi` writes it anew.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tests::cluster::Up;
use tests::http::{Admin, Answer, send};
use tests::page::tree;
use tests::schema::{faults, unnamed};

/// Operations that need what is not made here: an owner that is lost, a node that is removed for good. `takeover.rs` and `removal.rs` do
/// those, through the same types.
const ELSEWHERE: [&str; 4] = ["takeVolumeOver", "getTakeover", "rejoinVolume", "removeNode"];

/// Where the routes are, in the tree.
const ROUTERS: [&str; 3] = ["http.rs", "http/dashboard.rs", "observe.rs"];

/// What a node answers whoever has its secret.
fn asked(admin: &Admin, method: &str, path: &str, body: &str) -> Answer {
    let (method, address, secret, length) = (method.to_uppercase(), &admin.address, admin.header(), body.len());
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\n{secret}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    send(address, (head + body).as_bytes()).expect("answers")
}

struct Api {
    admin: Admin,
    description: Value,
    asked: BTreeSet<String>,
}

impl Api {
    fn of(up: &Up) -> Api {
        let admin = Admin::find(&up.data(), "a").expect("it has one");
        let answer = asked(&admin, "get", "/v1/openapi.json", "");
        assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
        Api { description: serde_json::from_str(&answer.body).expect("is JSON"), admin, asked: BTreeSet::new() }
    }

    /// The operation of a request, by what it says of it: `get /v1/volumes/{name}`.
    fn operation(&self, template: &str) -> Value {
        let (method, path) = template.split_once(' ').expect("method and path");
        let found = &self.description["paths"][path][method];
        assert!(found.is_object(), "{template} is not described");
        found.clone()
    }

    fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        asked(&self.admin, method, path, &body.map(Value::to_string).unwrap_or_default())
    }

    /// Asks, and holds what is asked and answered against the description; `{}` in `template` are filled with `names`.
    fn ask(&mut self, template: &str, names: &[&str], query: &str, body: Option<Value>) -> Value {
        let (status, answered) = self.answered(template, names, query, body);
        assert_eq!(status, 200, "{template} {names:?}: {answered}");
        answered
    }

    fn answered(&mut self, template: &str, names: &[&str], query: &str, body: Option<Value>) -> (u16, Value) {
        let operation = self.operation(template);
        let (method, path) = template.split_once(' ').expect("method and path");
        let parts: Vec<&str> = path.split(['{', '}']).collect();
        let path: String =
            parts.iter().enumerate().map(|(at, part)| if at % 2 == 1 { names[at / 2] } else { *part }).collect();
        let known: Vec<&str> =
            operation["parameters"].as_array().into_iter().flatten().filter_map(|one| one["name"].as_str()).collect();
        for parameter in query.split('&').filter_map(|pair| pair.split('=').next()).filter(|name| !name.is_empty()) {
            assert!(known.contains(&parameter), "{template} says nothing of {parameter}");
        }
        let schema = |content: &Value| content["content"]["application/json"]["schema"].clone();
        match &body {
            Some(body) => {
                let wrong = faults(&self.description, &schema(&operation["requestBody"]), body);
                assert!(wrong.is_empty(), "{template} is asked with {body:#}:\n{}", wrong.join("\n"));
            }
            None => assert!(operation["requestBody"].is_null(), "{template} has a body"),
        }
        let question = if query.is_empty() { path } else { format!("{path}?{query}") };
        let answer = self.send(method, &question, body.as_ref());
        let told = &operation["responses"][answer.status.to_string()];
        let told = match told["$ref"].as_str() {
            Some(target) => self.description.pointer(&target[1..]).expect("is there"),
            None => told,
        };
        assert!(told.is_object(), "{template} does not say that it answers {}: {}", answer.status, answer.body);
        let answered: Value =
            serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {}", answer.body));
        let wrong = faults(&self.description, &schema(told), &answered);
        assert!(wrong.is_empty(), "{template} answers {answered:#}:\n{}", wrong.join("\n"));
        let left_out = unnamed(&self.description, &schema(told), &answered);
        assert!(left_out.is_empty(), "{template} answers more than is described: {left_out:?}");
        if answer.status == 200 {
            self.asked.insert(operation["operationId"].as_str().expect("has a name").to_owned());
        }
        (answer.status, answered)
    }

    fn looks(&mut self, template: &str, names: &[&str]) -> Value {
        self.ask(&format!("get {template}"), names, "", None)
    }

    /// Of an operation that answers with text.
    fn text(&mut self, path: &str) {
        let operation = self.operation(&format!("get {path}"));
        let answer = self.send("get", path, None);
        let kinds = operation["responses"]["200"]["content"].as_object().expect("kinds of text");
        let kind = answer.head.lines().find_map(|line| line.strip_prefix("content-type: ")).expect("says what it is");
        assert!(answer.status == 200 && kinds.contains_key(kind), "{path}: {kind}, and not one of {kinds:?}");
        self.asked.insert(operation["operationId"].as_str().expect("has a name").to_owned());
    }
}

#[test]
fn what_a_node_is_asked_and_answers_is_as_described() {
    let up = Up::start(&["--rtt", "2"]).expect("starts");
    let mut api = Api::of(&up);
    let api = &mut api;
    let sized = |name: &str| json!({ "name": name, "size_bytes": 16 << 20, "owner": "a" });
    for volume in ["disk", "data", "spare"] {
        api.ask("post /v1/volumes", &[], "", Some(sized(volume)));
    }
    assert_eq!(api.looks("/v1/volumes", &[]).as_array().map(Vec::len), Some(3));

    let disk = ["disk"];
    api.looks("/v1/volumes/{name}", &disk);
    api.looks("/v1/volumes/{name}/owner", &disk);
    api.looks("/v1/volumes/{name}/policy", &disk);
    let policy = json!({ "propagation": "lazy", "interval_ms": 1000, "replica": "c" });
    api.ask("post /v1/volumes/{name}/policy", &disk, "", Some(policy));
    api.ask("post /v1/volumes/{name}/resize", &disk, "", Some(json!({ "size_bytes": 32 << 20 })));
    api.ask(
        "post /v1/volumes/{name}/migrate",
        &disk,
        "",
        Some(json!({ "to": "b", "synced": true, "deadline_ms": 30_000 })),
    );
    api.ask("post /v1/volumes/{name}/on-write", &disk, "", Some(json!({ "to": "a" })));
    api.looks("/v1/volumes/{name}", &disk);
    api.ask("delete /v1/volumes/{name}/migrate", &disk, "", None);
    api.looks("/v1/volumes/{name}/timeline", &disk);
    // One with operations in it is held against the description in `trace.rs`.
    api.ask("get /v1/volumes/{name}/trace", &disk, "op=flush,read&for_ms=50&slowest=3", None);
    let (status, _) = api.answered("get /v1/volumes/{name}/trace", &disk, "op=mend", None);
    assert_eq!(status, 400);
    api.ask("get /v1/volumes/{name}/residency", &disk, "node=c&parts=16", None);
    api.ask("get /v1/overview", &[], "search=d&sort=lag&descending=true&limit=2&offset=0&waiting=false", None);

    api.ask("post /v1/volumes/{name}/snapshots", &disk, "", Some(json!({ "name": "monday" })));
    api.looks("/v1/volumes/{name}/snapshots", &disk);
    let monday = ["disk", "monday"];
    api.ask("post /v1/volumes/{name}/snapshots/{snapshot}/clone", &monday, "", Some(json!({ "name": "copy" })));
    api.ask(
        "post /v1/volumes/{name}/snapshots/{snapshot}/rollback",
        &monday,
        "",
        Some(json!({ "discard_changes": true })),
    );
    api.ask("delete /v1/volumes/{name}", &["copy"], "", None);
    api.ask("delete /v1/volumes/{name}/snapshots/{snapshot}", &monday, "", None);

    let other = |verb: &str| Some(json!({ verb: ["c"] }));
    api.ask("post /v1/volumes/{name}/replicas", &disk, "", other("remove"));
    api.ask("post /v1/volumes/{name}/replicas", &disk, "", other("add"));
    api.ask("post /v1/nodes/{name}/labels", &["c"], "", Some(json!({ "add": ["eu"], "remove": ["us"] })));
    let rule = |rule: &str| Some(json!({ "rule": rule, "dry_run": true }));
    api.ask("post /v1/volumes/{name}/placement", &disk, "", rule("1 in eu, 1 elsewhere"));
    api.looks("/v1/volumes/{name}/placement", &disk);
    // Sealed keys are made where a volume is used: here by the command.
    let key = up.data().join("one.key").display().to_string();
    let other_key = up.data().join("two.key").display().to_string();
    for key in [&key, &other_key] {
        up.run(&["volume", "key", "generate", "--out", key]).expect("is made");
    }
    up.run(&["volume", "create", "secret", "--size", "8M", "--encrypt", "--key-file", &key]).expect("is created");
    let made = api.looks("/v1/volumes/{name}/keys", &["secret"]);
    up.run(&["volume", "key", "add", "secret", "--key-file", &key, "--new-key-file", &other_key]).expect("is added");
    let both = api.looks("/v1/volumes/{name}/keys", &["secret"]);
    assert_eq!((made["sealed"].as_array().map(Vec::len), both["sealed"].as_array().map(Vec::len)), (Some(1), Some(2)));
    let second =
        both["sealed"].as_array().expect("a list").iter().find(|it| it["name"] == "two.key").expect("is one").clone();
    api.ask("delete /v1/volumes/{name}/keys/{key}", &["secret", "two.key"], "", None);
    let again = json!({ "check": made["check"], "key": second });
    api.ask("post /v1/volumes/{name}/keys", &["secret"], "", Some(again));

    let group = ["vm"];
    api.ask("post /v1/groups", &[], "", Some(json!({ "name": "vm", "volumes": ["data"] })));
    api.ask("post /v1/groups/{name}/volumes", &group, "", Some(json!({ "add": ["spare"], "remove": [] })));
    api.ask("post /v1/groups/{name}/migrate", &group, "", Some(json!({ "to": "c" })));
    api.ask("post /v1/groups/{name}/on-write", &group, "", Some(json!({ "to": "a" })));
    api.looks("/v1/groups/{name}", &group);
    api.ask("post /v1/groups/{name}/replicas", &group, "", Some(json!({ "remove": ["b"] })));
    api.ask("post /v1/groups/{name}/placement", &group, "", rule("2 anywhere"));
    api.looks("/v1/groups/{name}/placement", &group);
    api.ask("delete /v1/groups/{name}/migrate", &group, "", None);
    api.ask("post /v1/groups/{name}/snapshots", &group, "", Some(json!({ "name": "noon" })));
    api.looks("/v1/groups", &[]);
    api.ask("delete /v1/groups/{name}/snapshots/{snapshot}", &["vm", "noon"], "", None);
    api.ask("delete /v1/groups/{name}", &group, "", None);

    let windows = json!([{ "from": "22:00", "to": "06:00", "rate_bytes_per_second": null }]);
    let limits = json!({ "rate_bytes_per_second": 20_000_000, "windows": windows });
    api.ask("post /v1/links/{from}/{to}", &["a", "b"], "", Some(limits));
    api.looks("/v1/links", &[]);
    api.ask("get /v1/space", &[], "node=b", None);
    for method in ["post", "get", "delete"] {
        api.ask(&format!("{method} /v1/scrub"), &[], "volume=disk&node=b", None);
    }
    api.looks("/v1/cluster", &[]);
    api.looks("/v1/nodes", &[]);
    let note = json!({ "client": "host-7", "fingerprint": "ab".repeat(32) });
    api.ask("post /v1/clients", &[], "", Some(note));
    api.looks("/v1/clients", &[]);
    let rights = json!({ "client": "host-7", "role": "viewer", "allow": ["disk:ro"], "deny": [] });
    api.ask("post /v1/clients/rights", &[], "", Some(rights));
    api.ask("post /v1/clients/revoke", &[], "", Some(json!({ "client": "host-7" })));
    api.ask("get /v1/audit", &[], "limit=3", None);

    api.looks("/v1/openapi.json", &[]);
    api.looks("/health/live", &[]);
    api.looks("/health/ready", &[]);
    api.text("/health");
    api.text("/metrics");

    // What is refused is described, too.
    let mut refused = |template: &str, names: &[&str], body: Option<Value>| api.answered(template, names, "", body).0;
    assert_eq!(refused("get /v1/volumes/{name}", &["absent"], None), 404);
    assert_eq!(refused("post /v1/volumes", &[], Some(sized("disk"))), 409);
    assert_eq!(refused("post /v1/volumes", &[], Some(json!({ "name": "odd", "size_bytes": 7 }))), 400);

    // Plain text, or nothing, was the answer to what no handler saw: a field that is missing, a path that is not there.
    let malformed = [
        ("post", "/v1/volumes", 400, "InvalidRequest"),
        ("get", "/v1/nothing", 404, "NotFound"),
        ("put", "/v1/space", 405, "NotFound"),
    ];
    for (method, path, status, kind) in malformed {
        let answer = api.send(method, path, Some(&json!({ "name": "odd" })));
        let failure: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        assert_eq!((answer.status, &failure["kind"]), (status, &json!(kind)), "{method} {path}: {}", answer.body);
        assert!(failure["message"].as_str().is_some_and(|message| message.contains(path)), "{failure}");
    }

    let all = operations(&api.description);
    let ids: BTreeSet<String> =
        all.iter().filter_map(|(_, one)| one["operationId"].as_str().map(str::to_owned)).collect();
    let missing: Vec<&String> = ids.difference(&api.asked).filter(|id| !ELSEWHERE.contains(&id.as_str())).collect();
    assert!(missing.is_empty(), "nobody has asked {missing:?}");
}

/// The routes of a source, as `get /path`.
fn routes(source: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for route in source.split(".route(\"").skip(1) {
        let (path, rest) = route.split_once('"').expect("a path ends");
        // It ends where the next one, or something else, begins.
        let handlers = rest.split("\n        .").next().and_then(|rest| rest.split("\n}").next()).unwrap_or(rest);
        for method in ["get", "post", "put", "patch", "delete"] {
            if [" ", ".", "::"].iter().any(|before| handlers.contains(&format!("{before}{method}("))) {
                found.insert(format!("{method} {path}"));
            }
        }
    }
    found
}

/// The operations of a description, with their routes.
fn operations(description: &Value) -> Vec<(String, &Value)> {
    let paths = description["paths"].as_object().into_iter().flatten();
    paths
        .flat_map(|(path, methods)| {
            methods.as_object().into_iter().flatten().map(move |(method, one)| (format!("{method} {path}"), one))
        })
        .collect()
}

/// References within a description.
fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(members) => members.iter().for_each(|(name, member)| match member.as_str() {
            Some(target) if name == "$ref" => drop(found.insert(target)),
            _ => references(member, found),
        }),
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn every_route_is_described_nothing_else_is_and_the_documentation_has_it() {
    let up = Up::start(&[]).expect("starts");
    let api = Api::of(&up);
    let read =
        |path: &str| std::fs::read_to_string(tree().join("storage-node/src/serve").join(path)).expect("is there");
    let there: BTreeSet<String> = ROUTERS.iter().flat_map(|path| routes(&read(path))).collect();
    assert!(there.len() > 40, "{there:?}");
    let operations = operations(&api.description);
    assert_eq!(there, operations.iter().map(|(route, _)| route.clone()).collect());
    let ids: BTreeSet<&str> = operations.iter().filter_map(|(_, one)| one["operationId"].as_str()).collect();
    assert_eq!(ids.len(), operations.len(), "two operations have one name");

    let mut found = BTreeSet::new();
    references(&api.description, &mut found);
    assert!(found.len() > 60, "{found:?}");
    for target in found {
        let pointer = target.strip_prefix('#').expect("within the description");
        assert!(api.description.pointer(pointer).is_some(), "{target} is not there");
    }
    for (name, schema) in api.description["components"]["schemas"].as_object().expect("types") {
        assert!(schema["description"].is_string(), "nobody says what {name} is");
    }

    let served = asked(&api.admin, "get", "/v1/openapi.json", "").body;
    let path = tree().join("docs/openapi.json");
    if std::env::var("HELIO_GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::write(&path, &served).expect("is written");
    }
    let advice =
        "docs/openapi.json is out of date: `HELIO_GOLDEN=write cargo nextest run -p tests openapi` writes it anew";
    assert!(std::fs::read_to_string(&path).unwrap_or_default() == served, "{advice}");
}
