//! What crosses the emulated WAN for a load: counted in bytes, at the nodes and on the links. Figures are printed; what is asserted are
//! counts and never times.

use std::time::Duration;

use serde_json::Value;
use tests::cluster::Up;
use tests::nbd_client::Client;
use tests::tools::until;
use tests::workload::{BLOCK, check, fill};

const SEED: u64 = 5;
const BLOCKS: u64 = 4096;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(120);

fn is_in_step(up: &Up) -> bool {
    let status = up.json(&["volume", "status", "disk", "--json"]).expect("succeeds");
    status["replicas"].as_array().expect("a list").iter().all(|replica| replica["watermark"] == status["head"])
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} is a number in {value}"))
}

/// A block that says what it is over and over, and so shrinks to a hundredth.
fn text(block: u64, generation: u64) -> Vec<u8> {
    let line = format!("block {block}, generation {generation}; ");
    line.into_bytes().into_iter().cycle().take(BLOCK).collect()
}

#[test]
fn a_load_that_shrinks_crosses_the_wan_small_and_arrives_whole() {
    let up = Up::start(&["--rtt", "40", "--rate", "100"]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    let mut client = Client::connect(&up.socket("a"), "disk").expect("connects");
    // By the end of this the nodes know what the others understand.
    client.write(0, &fill(SEED, 0, 1)).expect("is written");
    until("the replicas follow", PATIENCE, || is_in_step(&up));
    let before = number(&up.json(&["cluster", "status", "--json"]).expect("succeeds"), "wan_bytes");

    for block in (0..BLOCKS).step_by(64) {
        let bytes: Vec<u8> = (block..block + 64).flat_map(|block| text(block, 2)).collect();
        client.write(block * BLOCK as u64, &bytes).expect("is written");
    }
    until("the replicas have it", PATIENCE, || is_in_step(&up));
    let crossed = number(&up.json(&["cluster", "status", "--json"]).expect("succeeds"), "wan_bytes") - before;
    let status = up.json(&["volume", "status", "disk", "--json"]).expect("succeeds");
    let mut sent_to_all = 0;
    for replica in status["replicas"].as_array().expect("a list") {
        let freight = &replica["freight"];
        println!("to {}: {freight}", replica["node"]);
        let (sent, wire) = (number(freight, "sent_bytes"), number(freight, "wire_bytes"));
        let (zero, overwritten) = (number(freight, "zero_bytes"), number(freight, "overwritten_bytes"));
        assert_eq!(number(freight, "written_bytes"), number(&status, "written_bytes"));
        assert!(sent + zero + overwritten >= number(&status, "written_bytes"), "{freight}");
        assert!(wire * 4 < sent, "{freight}");
        assert_eq!(number(freight, "compressed_bytes"), sent - wire);
        sent_to_all += sent;
    }
    println!("{crossed} bytes crossed the WAN for {sent_to_all} bytes of blocks");
    assert!(crossed < sent_to_all / 2, "{crossed} of {sent_to_all}");

    // What does not shrink crosses as it is.
    let link = |key: &str| {
        let links = up.json(&["link", "list", "--json"]).expect("succeeds");
        let links = links["links"].as_array().expect("a list").clone();
        let link = links.into_iter().find(|link| link["from"] == "a" && link["to"] == "b").expect("is listed");
        number(&link["freight"], key)
    };
    let before = (link("sent_bytes"), link("wire_bytes"));
    for block in (0..1024).step_by(64) {
        let bytes: Vec<u8> = (block..block + 64).flat_map(|block| fill(SEED, block, 3)).collect();
        client.write(block * BLOCK as u64, &bytes).expect("is written");
    }
    until("the replicas have that, too", PATIENCE, || is_in_step(&up));
    let (sent, wire) = (link("sent_bytes") - before.0, link("wire_bytes") - before.1);
    println!("noise: {wire} bytes on the wire for {sent}");
    assert_eq!(sent, wire);
    assert!(up.run(&["volume", "status", "disk"]).expect("succeeds").contains("by compression"));
    assert!(up.run(&["link", "list"]).expect("succeeds").contains("COMPRESSED"));

    up.run(&["volume", "migrate", "disk", "--to", "b"]).expect("is handed over");
    let mut at_b = Client::connect(&up.socket("b"), "disk").expect("connects");
    for block in 0..BLOCKS {
        let bytes = at_b.read(block * BLOCK as u64, BLOCK as u32).expect("is read");
        match block < 1024 {
            true => assert_eq!(check(&bytes, SEED, block), Ok(3)),
            false => assert!(bytes == text(block, 2), "block {block}"),
        }
    }
}

#[test]
fn links_and_replicas_are_set_while_everything_runs() {
    let up = Up::start(&["--rtt", "4"]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    let mut client = Client::connect(&up.socket("a"), "disk").expect("connects");
    client.write(0, &fill(SEED, 0, 1)).expect("is written");
    until("the replicas follow", PATIENCE, || is_in_step(&up));

    let said = up.run(&["link", "set", "a", "b", "--rate", "0", "--window", "22:00-22:00=0"]).expect("is set");
    assert_eq!(said.trim(), "from a to b: nothing, 22:00 to 22:00 UTC nothing");
    let replica = |node: &str| {
        let status = up.json(&["volume", "status", "disk", "--json"]).expect("succeeds");
        let replicas = status["replicas"].as_array().expect("a list").clone();
        replicas.into_iter().find(|replica| replica["node"] == node).expect("follows")
    };
    until("the owner knows", PATIENCE, || replica("b")["limit_bytes_per_second"] == 0);
    for block in 0..64 {
        client.write(block * BLOCK as u64, &fill(SEED, block, 2)).expect("is written, whatever the link may take");
    }
    until("c follows", PATIENCE, || replica("c")["bytes_behind"] == 0);
    assert_eq!(replica("b")["bytes_behind"], 64 * BLOCK, "and b does not");
    let why = up.run(&["why", "disk"]).expect("tells");
    assert!(why.contains("`helio link set a b` changes that"), "{why}");
    assert!(up.run(&["link", "list"]).expect("lists").contains("from a to b: nothing"));

    // It moves with everything all the same, and the link of another node is another one.
    up.run(&["volume", "migrate", "disk", "--to", "b", "--mode", "synced"]).expect("is handed over");
    assert_eq!(up.json(&["volume", "status", "disk", "--json"]).expect("succeeds")["stale_bytes"], 0);
    up.run(&["link", "set", "a", "b", "--rate", "unlimited", "--no-windows"]).expect("is set");
    let links = up.json(&["link", "list", "--json"]).expect("succeeds");
    let is_free = |link: &Value| link["rate_bytes_per_second"].is_null() && link["windows"] == serde_json::json!([]);
    assert!(links["links"].as_array().expect("a list").iter().all(is_free), "{links}");
    assert_eq!(links["links"].as_array().map(Vec::len), Some(6));

    let said = up
        .run(&["volume", "policy", "disk", "--propagation", "lazy", "--interval", "600", "--send-order", "log"])
        .expect("is set");
    assert!(said.contains("sent data every 600 s (lazy)") && said.contains("in the order log"), "{said}");
    let own = ["volume", "policy", "disk", "--replica", "c", "--propagation", "eager", "--json"];
    let policy = up.json(&own).expect("succeeds");
    assert_eq!((&policy["propagation"], &policy["replicas"]["c"]["propagation"]), (&"lazy".into(), &"eager".into()));
    let mut at_b = Client::connect(&up.socket("b"), "disk").expect("connects");
    until("the owner knows that, too", PATIENCE, || replica("a")["policy"]["interval_ms"] == 600_000);
    at_b.write(0, &fill(SEED, 0, 3)).expect("is written");
    until("the eager one follows", PATIENCE, || replica("c")["bytes_behind"] == 0);
    assert_eq!(replica("c")["policy"]["propagation"], "eager");
    for (arguments, said) in [
        (&["--propagation", "sync"][..], "--durability site:N or geo:N"),
        (&["--rpo-target", "5", "--replica", "c", "--propagation", "default"], "no replica would be within 5 s"),
        (&["--replica", "nobody", "--propagation", "lazy"], "nobody"),
        (&["--interval", "9", "--propagation", "eager"], "goes with `lazy`"),
    ] {
        let all = [&["volume", "policy", "disk"], arguments].concat();
        let refused = up.run(&all).expect_err(said).to_string();
        assert!(refused.contains(said), "{refused}");
    }
    assert!(
        up.run(&["link", "set", "a", "a", "--rate", "1M"])
            .expect_err("is none")
            .to_string()
            .contains("between two nodes")
    );
    assert!(up.run(&["link", "set", "a", "b"]).expect_err("says nothing").to_string().contains("--rate"));
}

/// Writes `blocks` of noise from the first on.
fn write_noise(client: &mut Client, blocks: u64, generation: u64) {
    for block in (0..blocks).step_by(64) {
        let bytes: Vec<u8> = (block..block + 64).flat_map(|block| fill(SEED, block, generation)).collect();
        client.write(block * BLOCK as u64, &bytes).expect("is written");
    }
}

#[test]
fn what_is_written_again_as_it_was_is_not_sent_again() {
    let up = Up::start(&["--rtt", "40", "--rate", "200"]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    let mut client = Client::connect(&up.socket("a"), "disk").expect("connects");
    write_noise(&mut client, BLOCKS, 1);
    until("the replicas follow", PATIENCE, || is_in_step(&up));
    let freight = |key: &str| -> Vec<u64> {
        let status = up.json(&["volume", "status", "disk", "--json"]).expect("succeeds");
        status["replicas"].as_array().expect("a list").iter().map(|replica| number(&replica["freight"], key)).collect()
    };
    let (sent, wan) =
        (freight("sent_bytes"), number(&up.json(&["cluster", "status", "--json"]).expect("succeeds"), "wan_bytes"));
    write_noise(&mut client, BLOCKS, 1);
    // A little is new.
    write_noise(&mut client, 64, 2);
    until("the replicas follow again", PATIENCE, || is_in_step(&up));
    let crossed = number(&up.json(&["cluster", "status", "--json"]).expect("succeeds"), "wan_bytes") - wan;
    println!("{crossed} bytes crossed the WAN for {} bytes written again, twice", BLOCKS * BLOCK as u64);
    assert!(crossed < BLOCKS * BLOCK as u64 / 4, "{crossed}");
    for ((same, after), before) in freight("same_bytes").into_iter().zip(freight("sent_bytes")).zip(sent) {
        println!("same: {same}, sent: {}", after - before);
        assert!(same > BLOCKS * BLOCK as u64 * 9 / 10 && after - before < BLOCKS * BLOCK as u64 / 10);
    }
    assert!(up.run(&["volume", "status", "disk"]).expect("succeeds").contains("there already"));
    up.run(&["volume", "migrate", "disk", "--to", "b"]).expect("is handed over");
    let mut at_b = Client::connect(&up.socket("b"), "disk").expect("connects");
    for block in 0..BLOCKS {
        let bytes = at_b.read(block * BLOCK as u64, BLOCK as u32).expect("is read");
        assert_eq!(check(&bytes, SEED, block), Ok(if block < 64 { 2 } else { 1 }));
    }
}
