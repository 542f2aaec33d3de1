//! The Debian package: made of built programs, and its contents as they would lie on a machine. It is unpacked, and not installed: that is
//! `systemd.rs`.

use std::process::Command;

use tests::package::{Package, tree};
use tests::tools::run;

#[test]
fn the_package_has_programs_library_units_pages_and_what_shells_want() {
    let Some(package) = Package::build().expect("is made") else { return };
    let version = run(Command::new(package.path("usr/bin/helio")).arg("--version")).expect("it runs");
    assert_eq!(version.trim(), format!("helio {}", package.field("Version")));
    run(Command::new(package.path("usr/bin/helio-nbd")).arg("--help")).expect("it runs");
    let depends = package.field("Depends");
    assert!(depends.contains("libc6 (>= "), "{depends}");

    let triplet = run(Command::new("dpkg-architecture").arg("-qDEB_HOST_MULTIARCH")).expect("is known");
    let libraries = format!("usr/lib/{}", triplet.trim());
    let pc = package.text(&format!("{libraries}/pkgconfig/heliotrope.pc"));
    assert!(pc.contains(&format!("/{libraries}")) && !pc.contains("root"), "it names where it will be: {pc}");
    assert!(package.path(&format!("{libraries}/libheliotrope.so")).exists(), "the link leads somewhere");

    let page = package.path("usr/share/man/man1/helio-volume-migrate.1.gz");
    let page = run(Command::new("gzip").arg("-dc").arg(page)).expect("is there");
    assert!(page.contains("deadline"), "{page}");
    let completions = package.path("usr/share/bash-completion/completions/helio");
    run(Command::new("bash").arg("-n").arg(completions)).expect("bash reads it");

    assert!(
        package.text("usr/share/doc/heliotrope/openapi.json").contains("\"openapi\": \"3.1.0\""),
        "the API is described"
    );
    assert!(package.path("usr/share/doc/heliotrope/pictures/cluster.svg").exists(), "pages have their pictures");
    let hook = package.path("usr/share/heliotrope/libvirt/qemu-hook");
    run(Command::new(hook).args(["web", "started", "begin", "-"])).expect("the hook for libvirt runs");

    // Word for word those of the documentation: what is read there is what runs.
    let documented = std::fs::read_to_string(tree().join("docs/systemd.md")).expect("is there");
    for unit in ["helio-node.socket", "helio-node.service", "helio-nbd.socket", "helio-nbd@.service"] {
        let text = package.text(&format!("usr/lib/systemd/system/{unit}"));
        let indented: Vec<String> =
            text.lines().map(|line| if line.is_empty() { String::new() } else { format!("    {line}") }).collect();
        assert!(documented.contains(&indented.join("\n")), "{unit}:\n{text}");
        assert!(text.contains("[Install]") && text.ends_with(".target\n"), "all of {unit}:\n{text}");
    }

    // `helio cluster init` comes before the unit, which would make its directory.
    let installed = std::fs::read_to_string(tree().join("storage-node/debian/postinst")).expect("is there");
    let state = package.text("usr/lib/systemd/system/helio-node.service");
    let state = state.lines().find_map(|line| line.strip_prefix("StateDirectory=")).expect("it has one");
    assert!(installed.contains(&format!("-o helio -g helio /var/lib/{state}")), "{installed}");

    // Nobody needs root to make it, and root owns what is in it.
    let contents = run(Command::new("dpkg-deb").arg("--contents").arg(package.file())).expect("is listed");
    let foreign: Vec<&str> = contents.lines().filter(|line| !line.contains("root/root")).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    let mode = |file: &str| contents.lines().find(|line| line.contains(file)).map(|line| line[..10].to_owned());
    assert_eq!(mode("./usr/bin/helio-nbd").as_deref(), Some("-rwxr-xr-x"));
    assert_eq!(mode("./usr/lib/systemd/system/helio-node.service").as_deref(), Some("-rw-r--r--"));
}
