//! `helio-nbd` is killed while another one takes over from it, at moments all over the handover: the new one serves in any case. It has the
//! connections, or its clients connect anew, and all that was acked is there. More moments in `make soak` (`HELIO_KILLS`).

use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tests::nbd_client::{Client, Error};
use tests::nodes::Nodes;
use tests::tools::{Owned, kills, until};
use tests::workload::{check, fill};

const BLOCK: u64 = 4096;
const SEED: u64 = 53;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(90);
/// From the start of a successor to the last moment that is tried: a handover takes some ten milliseconds, most of which are its start.
const LAST_MOMENT: Duration = Duration::from_millis(60);

/// A helio-nbd on `socket`, with its output.
struct Process {
    owned: Owned,
    out: std::path::PathBuf,
}

fn start(nodes: &Nodes, number: u64, arguments: &[&str]) -> Process {
    let path = |what: &str| nodes.path().join(format!("host-{number}.{what}"));
    let mut command = Command::new(nodes.helio_nbd_program().expect("is there"));
    command.arg("--cluster").arg(nodes.path().join("host.helio"));
    command.arg("--socket").arg(nodes.path().join("host.sock")).args(arguments);
    let create = |what: &str| std::fs::File::create(path(what)).expect("is made");
    command.stdout(create("out")).stderr(create("log"));
    Process { owned: Owned::start(&mut command, "helio-nbd").expect("starts"), out: path("out") }
}

impl Process {
    fn said(&self) -> String {
        std::fs::read_to_string(&self.out).expect("is read")
    }

    /// What it said when it served; `None` when it ended without.
    fn served(&mut self) -> Option<String> {
        let mut outcome = None;
        until("it neither serves nor ends", PATIENCE, || {
            let said = self.said();
            if said.contains("ready: ") {
                outcome = Some(said);
                return true;
            }
            self.owned.ended().expect("is asked").is_some()
        });
        outcome
    }
}

/// From the second one on every process has inherited its control socket, and whoever connected to that took the first one for its predecessor: it
/// could not see that its own had died when everything was there, gave up, and nobody served.
#[test]
fn a_predecessor_that_is_killed_in_any_moment_costs_nothing_that_was_acked() {
    let nodes = Nodes::start(&["a"]).expect("a node starts");
    nodes.run("a", &["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    nodes.credentials("host").expect("are written");
    let socket = nodes.path().join("host.sock");
    let rounds = kills(2) * 12;
    let (mut acked, mut number, mut kept, mut anew) = (0, 0, 0, 0);
    let mut serving = start(&nodes, number, &[]);
    serving.served().expect("serves");
    let mut client = Client::connect(&socket, "disk").expect("connects");
    for round in 0..rounds {
        // Something that is acked, and something that is durable.
        for _ in 0..5 {
            client.write(acked % 100 * BLOCK, &fill(SEED, acked % 100, acked + 1)).expect("is written");
            acked += 1;
        }
        number += 1;
        let mut successor = start(&nodes, number, &["--replace"]);
        // What is tried, not what is waited for: the moments are spread evenly.
        std::thread::sleep(LAST_MOMENT * (round as u32 + 1) / rounds as u32);
        // It may have given way and ended already.
        let pid = Pid::from_raw(serving.owned.id() as i32).expect("a process");
        let _ = kill_process(pid, Signal::KILL);
        let outcome = successor.served();
        serving.owned.kill().expect("is waited for");
        let log = || std::fs::read_to_string(successor.out.with_extension("log")).expect("is read");
        // Who finds that there is nobody to take over from any more begins anew.
        let said = outcome.unwrap_or_else(|| panic!("nobody serves: {}", log()));
        if said.contains("taken over") {
            kept += 1
        } else {
            anew += 1
        }
        serving = successor;
        let last = acked - 1;
        let look = |client: &mut Client| -> Result<(), Error> {
            let bytes = client.read(last % 100 * BLOCK, BLOCK as u32)?;
            assert_eq!(check(&bytes, SEED, last % 100), Ok(last + 1), "what was acked is there");
            Ok(())
        };
        if said.contains("taken over") {
            look(&mut client).expect("it has the connection, and nobody has noticed");
        } else {
            assert!(look(&mut client).is_err(), "its connection has gone with the process");
            client = Client::connect(&socket, "disk").expect("connects anew");
            look(&mut client).expect("is read");
        }
    }
    for block in 0..100.min(acked) {
        let newest = (0..acked).filter(|write| write % 100 == block).max().expect("was written") + 1;
        let bytes = client.read(block * BLOCK, BLOCK as u32).expect("is read");
        assert_eq!(check(&bytes, SEED, block), Ok(newest));
    }
    println!("{rounds} kills: {kept} times the new one had everything, {anew} times it began anew");
    drop(client);
    serving.owned.terminate().expect("it runs");
    assert!(serving.owned.wait(PATIENCE).expect("it ends"), "it ended with a failure");
}
