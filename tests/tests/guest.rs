//! Virtual machines that take their disk along: QEMU's live migration between two providers, with a guest that writes without pause
//! and checks every block that it finds. How long the guest was held up is printed, not asserted.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::cluster::Up;
use tests::guest::{Guest, Image, Word};

const RTT_MS: u64 = 20;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(60);
/// Blocks that the guest writes at each place before it goes on.
const SOME: u64 = 300;

struct Scene {
    up: Up,
    image: Image,
    dir: tempfile::TempDir,
    moves: u32,
}

impl Scene {
    fn new() -> Scene {
        let up = Up::start(&["--rtt", &RTT_MS.to_string()]).expect("starts");
        up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
        let dir = tempfile::tempdir().expect("a directory");
        let image = Image::build(dir.path()).expect("is built");
        Scene { up, image, dir, moves: 0 }
    }

    fn start(&self, at: &str, incoming: Option<&Path>) -> Guest {
        let name = format!("{at}-{}", self.moves);
        let socket = self.up.socket(at);
        Guest::start(self.dir.path(), &name, &self.image, (&socket, "disk"), incoming).expect("starts")
    }

    /// A machine at `at` that waits for another one to come in.
    fn room(&mut self, at: &str) -> (Guest, std::path::PathBuf) {
        self.moves += 1;
        let path = self.dir.path().join(format!("incoming-{}", self.moves));
        (self.start(at, Some(&path)), path)
    }

    /// Waits until the node that is asked says that the volume is at `node`. What another node did already by what the metadata say
    /// comes there a moment later: a machine on a busy host had written a few blocks at b while a still told its own name.
    fn wait_for_owner(&self, node: &str) {
        let begun = Instant::now();
        loop {
            let status = self.up.json(&["volume", "status", "disk", "--json"]).expect("tells");
            if status["owner"] == node {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "the disk is at {}, not at {node}", status["owner"]);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn let_go(&self, to: &str) {
        self.up.run(&["volume", "migrate", "disk", "--to", to, "--on-write"]).expect("may go");
    }

    fn hand_over(&self, to: &str) {
        self.up.run(&["volume", "migrate", "disk", "--to", to]).expect("is handed over");
    }
}

fn wrote(words: &[Word]) -> u64 {
    words.last().map_or(0, |word| word.wrote)
}

/// Prints how long the guest was held up, beside how long QEMU stopped the machine.
fn tell(how: &str, migration: &Value, words: &[Word]) {
    let longest = words.iter().map(|word| word.longest_ms).max().unwrap_or(0);
    println!(
        "{how}, rtt {RTT_MS} ms: QEMU stopped the machine for {} ms, its longest write around that took {longest} ms = {:.1} round trips",
        migration["downtime"],
        longest as f64 / RTT_MS as f64
    );
}

/// There and back, with nothing called between stop and start: the volume follows the first write.
#[test]
fn a_machine_takes_its_disk_along_and_back_by_writing_it() {
    let mut scene = Scene::new();
    let mut machine = scene.start("a", None);
    let mut so_far = wrote(&machine.until_wrote(SOME).expect("writes"));
    for to in ["b", "a"] {
        let (mut room, path) = scene.room(to);
        scene.let_go(to);
        machine.migrate(&path, false).expect("begins");
        let migration = machine.until_migration_is("completed").expect("completes");
        let words = room.until_wrote(so_far + SOME).expect("goes on where it was");
        scene.wait_for_owner(to);
        tell(&format!("to {to}, by writing"), &migration, &words);
        so_far = wrote(&words);
        // The source ends, and flushes as it does.
        machine.ask("quit", json!({})).expect("ends");
        machine = room;
    }
}

/// Whoever drives QEMU has it pause between stop and start, and hands the volume over then.
#[test]
fn a_machine_takes_its_disk_along_when_the_volume_is_handed_over_while_it_stands() {
    let mut scene = Scene::new();
    let mut machine = scene.start("a", None);
    let mut so_far = wrote(&machine.until_wrote(SOME).expect("writes"));
    for to in ["b", "c"] {
        let (mut room, path) = scene.room(to);
        machine.migrate(&path, true).expect("begins");
        machine.until_migration_is("pre-switchover").expect("the machine stands");
        scene.hand_over(to);
        machine.ask("migrate-continue", json!({ "state": "pre-switchover" })).expect("goes on");
        let migration = machine.until_migration_is("completed").expect("completes");
        let words = room.until_wrote(so_far + SOME).expect("goes on where it was");
        scene.wait_for_owner(to);
        tell(&format!("to {to}, handed over while it stood"), &migration, &words);
        so_far = wrote(&words);
        machine = room;
    }
}

/// A migration that is cancelled at its last moment: the machine goes on at the source, with its disk, whether the volume was only
/// allowed to go or has gone already.
#[test]
fn a_machine_whose_migration_is_cancelled_goes_on_with_its_disk() {
    let mut scene = Scene::new();
    let mut machine = scene.start("a", None);
    let mut so_far = wrote(&machine.until_wrote(SOME).expect("writes"));
    for is_handed_over in [false, true] {
        let (_room, path) = scene.room("b");
        if !is_handed_over {
            scene.let_go("b");
        }
        machine.migrate(&path, true).expect("begins");
        machine.until_migration_is("pre-switchover").expect("the machine stands");
        if is_handed_over {
            scene.hand_over("b");
        }
        machine.ask("migrate_cancel", json!({})).expect("is cancelled");
        machine.until_migration_is("cancelled").expect("ends");
        let state = machine.ask("query-status", json!({})).expect("tells");
        if state["running"] == false {
            machine.ask("cont", json!({})).expect("runs");
        }
        so_far = wrote(&machine.until_wrote(so_far + SOME).expect("goes on at the source"));
        scene.wait_for_owner(if is_handed_over { "b" } else { "a" });
    }
    scene.hand_over("a");
    machine.until_wrote(so_far + SOME).expect("goes on");
    scene.wait_for_owner("a");
}
