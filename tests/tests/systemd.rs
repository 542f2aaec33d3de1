//! The Debian package on a fresh Debian with systemd, step by step as docs/operations.md and docs/systemd.md have it: installed, started,
//! killed, upgraded and removed, with a client that writes all the while. Needs root.

use std::time::Duration;

use tests::debian::Debian;
use tests::nbd_client::Client;
use tests::package::Package;
use tests::tools::until;
use tests::writer::Writer;

const SEED: u64 = 83;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(60);
/// The exposure of a unit by `systemd-analyze security`, from 0 to 10; it calls up to 2 "OK".
const EXPOSURE_MAX: f64 = 2.0;

const SETTINGS: &str = r#"
cat > /etc/helio/node.toml <<END
name = "a"
provider = "here"
data = "/var/lib/heliotrope"
listen = "127.0.0.1:7800"
END
"#;

/// Beside a node with a socket of its own, `helio-nbd` has another one (docs/systemd.md).
const OTHER_SOCKET: &str = "
mkdir -p /etc/systemd/system/helio-nbd.socket.d
printf '[Socket]\\nListenStream=\\nListenStream=/run/helio/host.sock\\n' > /etc/systemd/system/helio-nbd.socket.d/path.conf
systemctl daemon-reload
";

fn helio(arguments: &str) -> String {
    format!("runuser -u helio -- helio {arguments}")
}

fn property(debian: &Debian, unit: &str, name: &str) -> String {
    let told = debian.run(&format!("systemctl show {unit} --property={name} --value")).expect("is told");
    told.trim().to_owned()
}

fn require_active(debian: &Debian, unit: &str) {
    until(&format!("{unit} is not active"), PATIENCE, || property(debian, unit, "ActiveState") == "active");
}

/// The unit once left the process with the 1024 open files that programs begin with, which is enough for 1024 segments; its socket did not come up where no
/// package had made the group kvm; and systemd gave up after five tries in a second.
#[test]
fn a_node_and_its_disks_are_installed_run_killed_upgraded_and_removed_under_systemd() {
    let Some(package) = Package::build().expect("is made") else { return };
    let Some(debian) = Debian::boot().expect("boots") else { return };
    debian.copy(package.file(), "/srv/heliotrope.deb").expect("is copied");
    let run = |script: &str| debian.run(script).unwrap_or_else(|error| panic!("{script}: {error:#}"));
    run("dpkg --install /srv/heliotrope.deb");
    let enabled = debian.run("systemctl is-enabled helio-node.service helio-node.socket helio-nbd.socket || true");
    assert_eq!(enabled.expect("is told").lines().collect::<Vec<_>>(), ["disabled"; 3], "a node has no cluster yet");

    run(SETTINGS);
    let found = run(&helio("doctor --config /etc/helio/node.toml"));
    assert!(found.contains("io_uring"), "{found}");
    run(&helio("cluster init --config /etc/helio/node.toml"));
    run("systemctl enable --now helio-node.socket helio-node.service");
    run(&helio("cluster status --wait 60"));
    run(&helio("volume create disk --size 64M"));
    let pid = property(&debian, "helio-node", "MainPID");
    let limits = std::fs::read_to_string(debian.path(&format!("/proc/{pid}/limits"))).expect("is read");
    let open_files = limits.lines().find(|line| line.starts_with("Max open files")).expect("is told");
    let numbers: Vec<u64> = open_files.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(numbers[0] == numbers[1] && numbers[0] > 1024, "{open_files}");
    assert_eq!(run("stat --format '%U %G %a' /run/helio/nbd.sock").trim(), "root kvm 660");

    // A host's disks, through the cluster.
    run(&helio("cluster client host --out /var/lib/heliotrope/host.helio"));
    run("install -o helio-nbd -g helio-nbd -m 0600 /var/lib/heliotrope/host.helio /etc/helio/client.helio");
    run(OTHER_SOCKET);
    run("systemctl enable --now helio-nbd.socket helio-nbd@a");
    for unit in ["helio-node.service", "helio-nbd@a.service"] {
        let told = run(&format!("systemd-analyze security {unit} --no-pager | grep Overall"));
        let exposure = told.split(' ').find_map(|word| word.parse::<f64>().ok()).expect("a number");
        assert!(exposure <= EXPOSURE_MAX, "{told}");
    }

    let socket = debian.path("/run/helio/host.sock");
    let writer = Writer::new(0..1000, SEED);
    std::thread::scope(|scope| {
        let running = writer.start(scope, &socket, "disk");
        let goes_on = |what: &str| {
            let then = writer.acked();
            until(&format!("after {what} nothing is acked"), PATIENCE, || writer.acked() > then + 50);
        };
        goes_on("the start");
        run("systemctl kill --signal=KILL helio-node");
        goes_on("the death of the node");
        assert_eq!(property(&debian, "helio-node", "NRestarts"), "1");
        // The same package again stands for a newer one: nothing is stopped, and everything is restarted when it suits.
        let before = property(&debian, "helio-node", "MainPID");
        run("dpkg --install /srv/heliotrope.deb");
        assert_eq!(property(&debian, "helio-node", "MainPID"), before, "an upgrade stops nothing");
        run("systemctl restart helio-node");
        goes_on("a restart of the node");
        run("systemctl start helio-nbd@b && systemctl disable helio-nbd@a && systemctl enable helio-nbd@b");
        until("a does not end", PATIENCE, || property(&debian, "helio-nbd@a", "ActiveState") == "inactive");
        assert_eq!(property(&debian, "helio-nbd@a", "Result"), "success");
        goes_on("a successor of helio-nbd");
        running.finish().expect("its client sees no error");
    });
    // The node's own socket outlived its process as well.
    let own = debian.path("/run/helio/nbd.sock");
    writer.check(&mut Client::connect(&own, "disk").expect("connects")).expect("every byte is right");

    // What stands in its way is told, and gone after some time: it is tried as long as it takes.
    run("systemctl stop helio-node && mv /etc/helio/node.toml /etc/helio/gone.toml");
    assert!(debian.run("systemctl start helio-node").is_err(), "it has no settings");
    until("it gives up", PATIENCE, || property(&debian, "helio-node", "NRestarts").parse::<u64>().is_ok_and(|n| n > 6));
    run("mv /etc/helio/gone.toml /etc/helio/node.toml");
    require_active(&debian, "helio-node");

    run("dpkg --remove heliotrope");
    for unit in ["helio-node.service", "helio-nbd@b.service"] {
        assert_ne!(property(&debian, unit, "ActiveState"), "active", "{unit}");
    }
    run("dpkg --purge heliotrope && test -d /var/lib/heliotrope/meta && test -f /etc/helio/client.helio");
}
