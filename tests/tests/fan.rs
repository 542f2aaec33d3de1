//! Two replicas at one provider: over the emulated WAN data crosses once, and one of them has it from the other. Figures are printed; what is
//! asserted are counts and never times.

use std::time::{Duration, Instant};

use serde_json::Value;
use storage_node::wan::relay::Direction;
use storage_node::wan::{LinkSettings, WanLink};
use tests::nbd_client::Client;
use tests::nodes::Nodes;
use tests::tools::until;
use tests::workload::{BLOCK, fill};

const SEED: u64 = 7;
/// Blocks of a burst.
const BURST: u64 = 4096;
/// Blocks of a step of the load that goes on: a quarter mebibyte.
const STEP: u64 = 64;
/// Steps of it, and the pause between them: five mebibytes per second.
const STEPS: (u64, Duration) = (100, Duration::from_millis(50));
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(120);

/// A cluster of an owner at one provider, and two replicas of its volume `disk` at others: 60 ms away, with 200 Mbit/s to each.
struct Far {
    nodes: Nodes,
    links: [WanLink; 2],
}

impl Far {
    fn start(providers: [&str; 2]) -> Far {
        let mut nodes = Nodes::none().expect("a directory");
        let all = [("a", "near"), ("b", providers[0]), ("c", providers[1])];
        for (name, provider) in all {
            nodes.configure_at(name, provider).expect("is configured");
        }
        let links = ["b", "c"].map(|replica| {
            let settings = LinkSettings::rtt(Duration::from_millis(60), 200_000_000);
            WanLink::between(["a", replica].map(|name| nodes.address(name).expect("is known")), settings)
                .expect("starts")
        });
        nodes.route("a", &[("b", links[0].address()), ("c", links[1].address())]).expect("is set");
        nodes.route("b", &[("a", links[0].address_back())]).expect("is set");
        nodes.route("c", &[("a", links[1].address_back())]).expect("is set");
        for (name, _) in all {
            nodes.join(name).expect("joins");
        }
        nodes.run("a", &["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
        Far { nodes, links }
    }

    fn replicas(&self) -> Vec<Value> {
        self.status()["replicas"].as_array().expect("a list").clone()
    }

    fn status(&self) -> Value {
        self.nodes.json("a", &["volume", "status", "disk", "--json"]).expect("tells")
    }

    fn is_in_step(&self) -> bool {
        let status = self.status();
        status["replicas"].as_array().expect("a list").iter().all(|replica| replica["watermark"] == status["head"])
    }

    /// Bytes that have crossed from the owner to the others.
    fn crossed(&self) -> u64 {
        self.links.iter().map(|link| link.counters(Direction::ToTarget).bytes).sum()
    }

    /// One of the counts of each replica's freight.
    fn freight(&self, key: &str) -> Vec<u64> {
        let of = |replica: &Value| replica["freight"][key].as_u64().expect("a number");
        self.replicas().iter().map(of).collect()
    }

    fn cut_off(&self, replica: usize, is_cut: bool) {
        self.links[replica].settings().partition(is_cut);
    }
}

/// A delta that was on its way when its link broke was kept readable until the owner changed: with each break, once more of all that was
/// overwritten was held.
#[test]
fn what_is_held_for_a_replica_is_let_go_of_however_often_its_link_breaks() {
    let far = Far::start(["far", "farther"]);
    let mut client = Client::connect(&far.nodes.socket("a"), "disk").expect("connects");
    let held = |far: &Far| far.status()["space"]["held_bytes"].as_u64().expect("a number");
    for round in 1..3 {
        write_noise(&mut client, 0, BURST, 2 * round);
        far.cut_off(0, true);
        // News that it cannot be told of ends the session, with its transfer under way.
        write_noise(&mut client, 0, STEP, 2 * round + 1);
        until("it is out of reach", PATIENCE, || far.replicas().iter().any(|replica| replica["reachable"] == false));
        far.cut_off(0, false);
        until("it is back", PATIENCE, || far.is_in_step());
    }
    write_noise(&mut client, 0, BURST, 100);
    until("the replicas follow", PATIENCE, || far.is_in_step());
    until("nothing is held", PATIENCE, || held(&far) == 0);
}

fn write_noise(client: &mut Client, first: u64, blocks: u64, generation: u64) {
    for block in (first..first + blocks).step_by(STEP as usize) {
        let bytes: Vec<u8> = (block..block + STEP).flat_map(|block| fill(SEED, block, generation)).collect();
        client.write(block * BLOCK as u64, &bytes).expect("is written");
    }
}

/// A burst, then a load that goes on: the share of what two copies are that crossed, for each.
fn load(far: &Far, client: &mut Client) -> [f64; 2] {
    write_noise(client, 0, STEP, 1);
    until("the replicas follow", PATIENCE, || far.is_in_step());
    let share = |before: u64, blocks: u64| (far.crossed() - before) as f64 / (2 * blocks * BLOCK as u64) as f64;

    let before = far.crossed();
    write_noise(client, 0, BURST, 2);
    let begun = Instant::now();
    until("the replicas follow a burst", PATIENCE, || far.is_in_step());
    let burst = share(before, BURST);
    println!("burst: {burst:.2} of two copies crossed, both in step {:.2} s after it", begun.elapsed().as_secs_f64());

    let (before, mut behind) = (far.crossed(), [Vec::new(), Vec::new()]);
    for step in 0..STEPS.0 {
        write_noise(client, step * STEP % BURST, STEP, 3 + step);
        if step % 4 == 0 {
            for (behind, replica) in behind.iter_mut().zip(far.replicas()) {
                behind.push(replica["seconds_behind"].as_f64().expect("a number"));
            }
        }
        // The load's own pace, not a wait for anything.
        std::thread::sleep(STEPS.1);
    }
    until("the replicas follow a load", PATIENCE, || far.is_in_step());
    let steady = share(before, STEPS.0 * STEP);
    for behind in &mut behind {
        behind.sort_by(f64::total_cmp);
        println!(
            "load: {:.2} s behind at the median, {:.2} s at most",
            behind[behind.len() / 2],
            behind[behind.len() - 1]
        );
    }
    println!(
        "load: {steady:.2} of two copies crossed; sent {:?}, relayed {:?}",
        far.freight("sent_bytes"),
        far.freight("relayed_bytes")
    );
    [burst, steady]
}

#[test]
fn data_crosses_once_to_a_provider_with_two_replicas() {
    let far = Far::start(["far", "far"]);
    let mut client = Client::connect(&far.nodes.socket("a"), "disk").expect("connects");
    let shares = load(&far, &mut client);
    let relayed = far.freight("relayed_bytes");
    assert!(shares.iter().all(|share| *share < 0.75), "{shares:?}");

    // The one that the other has its data from is cut off: the owner sends it.
    let (lead, other) = if relayed[0] > relayed[1] { (1, 0) } else { (0, 1) };
    far.cut_off(lead, true);
    write_noise(&mut client, 0, 512, 1000);
    until("the other one follows", PATIENCE, || {
        let status = far.status();
        status["replicas"][other]["watermark"] == status["head"]
    });
    far.cut_off(lead, false);
    until("both follow", PATIENCE, || far.is_in_step());
}

#[test]
fn data_crosses_to_each_of_two_providers() {
    let far = Far::start(["far", "farther"]);
    let mut client = Client::connect(&far.nodes.socket("a"), "disk").expect("connects");
    load(&far, &mut client);
    assert_eq!(far.freight("relayed_bytes"), [0, 0]);
}
