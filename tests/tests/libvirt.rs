//! libvirt's hook, called as libvirt calls it: arguments and order as <https://libvirt.org/hooks.html> has them, with a machine's XML on
//! standard input. The hosts are the nodes of one `helio up`, each asked through its own admin API. No libvirt runs here.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tests::cluster::{Up, helio};
use tests::nbd_client::Client;
use tests::page::tree;

/// What libvirt calls at the host where a machine comes in, before the machine runs there.
const INCOMING: [[&str; 2]; 4] = [["migrate", "begin"], ["prepare", "begin"], ["start", "begin"], ["started", "begin"]];
/// What it calls where a machine has stopped, or was not started after all.
const STOPPED: [[&str; 2]; 2] = [["stopped", "end"], ["release", "end"]];

struct Hosts {
    up: Up,
    hook: PathBuf,
}

impl Hosts {
    fn new() -> Hosts {
        let up = Up::start(&["--rtt", "10"]).expect("starts");
        let hook = tree().join("storage-node/libvirt/qemu-hook");
        Hosts { up, hook }
    }

    fn admin(&self, node: &str) -> String {
        let file = std::fs::read(self.up.data().join("cluster.json")).expect("is there");
        let file: Value = serde_json::from_slice(&file).expect("is JSON");
        let nodes = file["nodes"].as_array().expect("a list");
        let found = nodes.iter().find(|found| found["name"] == node).expect("is one of them");
        found["http"].as_str().expect("it has an admin API").to_owned()
    }

    /// As libvirt writes it, with these disks at this host.
    fn machine(&self, host: &str, disks: &[&str]) -> String {
        let socket = self.up.socket(host);
        let disk = |name: &&str| {
            format!(
                "<disk type='network' device='disk'>\n  <driver name='qemu' type='raw' cache='none'/>\n  \
                 <source protocol='nbd' name='{name}'>\n    <host transport='unix' socket='{}'/>\n  </source>\n  \
                 <target dev='vda' bus='virtio'/>\n</disk>\n",
                socket.display()
            )
        };
        let disks: String = disks.iter().map(disk).collect();
        format!(
            "<domain type='kvm' id='7'>\n<name>web</name>\n<memory unit='KiB'>524288</memory>\n<devices>\n\
             <disk type='file' device='cdrom'><source file='/iso/tools.iso'/><target dev='sda'/></disk>\n{disks}</devices>\n</domain>\n"
        )
    }

    fn call(&self, cluster: &str, machine: &str, [operation, moment]: [&str; 2]) -> Output {
        let programs = helio().expect("is built").parent().expect("lies in a directory").display().to_string();
        let mut command = Command::new(&self.hook);
        command.args(["web", operation, moment, "-"]).env("PATH", format!("{programs}:/usr/bin:/bin"));
        command.env("HELIO_CLUSTER", cluster).env("HELIO_DATA", self.up.data());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the hook can be run");
        // It reads nothing when nothing is to be done, and has ended by then.
        let _ = child.stdin.take().expect("is ours").write_all(machine.as_bytes());
        child.wait_with_output().expect("it ends")
    }

    /// The hook at a host, for a machine with these disks; it must agree, and leave the XML as it is.
    fn agrees(&self, host: &str, disks: &[&str], moment: [&str; 2]) {
        let output = self.call(&self.admin(host), &self.machine(host, disks), moment);
        assert!(output.status.success(), "{moment:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.is_empty(), "libvirt would take this for XML: {:?}", output.stdout);
    }

    fn refuses(&self, host: &str, disks: &[&str], moment: [&str; 2]) -> String {
        let output = self.call(&self.admin(host), &self.machine(host, disks), moment);
        assert_eq!(output.status.code(), Some(1), "{moment:?} at {host}");
        String::from_utf8(output.stderr).expect("is text")
    }

    fn status(&self, volume: &str) -> Value {
        self.up.json(&["volume", "status", volume, "--json"]).expect("tells")
    }

    /// Writes as the machine at a host does, which is stopped with a flush.
    fn write(&self, host: &str, volume: &str) -> Result<(), tests::nbd_client::Error> {
        let mut client = Client::connect(&self.up.socket(host), volume)?;
        client.write(0, &[7; 4096])?;
        client.flush()
    }
}

#[test]
fn a_disk_goes_where_libvirt_has_its_machine_come_in() {
    let hosts = Hosts::new();
    hosts.up.run(&["volume", "create", "disk", "--size", "16M", "--owner", "a"]).expect("is created");
    hosts.write("a", "disk").expect("the machine runs at a");

    for moment in INCOMING {
        hosts.agrees("b", &["disk"], moment);
    }
    assert_eq!((&hosts.status("disk")["owner"], &hosts.status("disk")["on_write"]), (&"a".into(), &"b".into()));
    hosts.write("a", "disk").expect("it goes on at a while its memory is copied");
    hosts.write("b", "disk").expect("it goes on at b");
    for moment in STOPPED {
        hosts.agrees("a", &["disk"], moment);
    }
    assert_eq!((&hosts.status("disk")["owner"], &hosts.status("disk")["on_write"]), (&"b".into(), &Value::Null));
    hosts.write("b", "disk").expect("and it is not taken away");

    // A migration that is cancelled: the machine goes on where it was, and the permission ends.
    for moment in INCOMING.iter().chain(&STOPPED) {
        hosts.agrees("c", &["disk"], *moment);
    }
    assert_eq!((&hosts.status("disk")["owner"], &hosts.status("disk")["on_write"]), (&"b".into(), &Value::Null));
    hosts.write("c", "disk").expect_err("nobody has let it go to c");
    hosts.write("b", "disk").expect("b has it");

    // Shut down at b, and started at c.
    for moment in STOPPED {
        hosts.agrees("b", &["disk"], moment);
    }
    for moment in &INCOMING[1..] {
        hosts.agrees("c", &["disk"], *moment);
    }
    hosts.write("c", "disk").expect("it comes with the machine");
    assert_eq!(hosts.status("disk")["owner"], "c");
}

#[test]
fn disks_of_a_group_come_together_and_snapshots_stay() {
    let hosts = Hosts::new();
    for volume in ["root", "data"] {
        hosts.up.run(&["volume", "create", volume, "--size", "16M", "--owner", "a"]).expect("is created");
        hosts.write("a", volume).expect("the machine runs at a");
    }
    hosts.up.run(&["group", "create", "vm", "root", "data"]).expect("is made");
    hosts.up.run(&["volume", "snapshot", "create", "root@monday"]).expect("is made");
    for moment in INCOMING {
        hosts.agrees("b", &["root", "root@monday", "data"], moment);
    }
    hosts.write("b", "data").expect("it goes on at b");
    assert_eq!((&hosts.status("root")["owner"], &hosts.status("data")["owner"]), (&"b".into(), &"b".into()));
}

#[test]
fn a_machine_is_not_started_where_its_disk_cannot_come() {
    let hosts = Hosts::new();
    hosts.up.run(&["volume", "create", "disk", "--size", "16M", "--owner", "a"]).expect("is created");
    let told = hosts.refuses("b", &["disk", "absent"], ["migrate", "begin"]);
    assert!(told.contains("heliotrope: web:") && told.contains("absent"), "{told}");
    let told = hosts.call(&hosts.admin("b"), "this is no XML", ["migrate", "begin"]);
    assert_eq!(told.status.code(), Some(1), "{told:?}");

    // Machines that have none of our disks are none of its business, whatever state the cluster is in.
    let nobody = "127.0.0.1:1";
    assert!(hosts.call(nobody, &hosts.machine("b", &[]), ["migrate", "begin"]).status.success());
    let told = hosts.call(nobody, &hosts.machine("b", &["disk"]), ["prepare", "begin"]);
    assert_eq!(told.status.code(), Some(1), "{told:?}");
    assert!(String::from_utf8_lossy(&told.stderr).starts_with("heliotrope: web:"), "{told:?}");
    // And what is neither a beginning nor an end is not looked at.
    assert!(hosts.call(nobody, &hosts.machine("b", &["disk"]), ["started", "begin"]).status.success());
}
