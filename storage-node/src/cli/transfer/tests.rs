//! Transfers between images and exports in memory.

use super::memory::{MIB, Memory};
use super::*;

struct Fixture {
    directory: tempfile::TempDir,
    file: StateFile,
    state: State,
    source: Arc<Image>,
    memory: Memory,
}

impl Fixture {
    /// An image of 4 MiB, and an export to copy it to.
    async fn new() -> Fixture {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("image"), vec![7; 4 << 20]).expect("is written");
        let source = Arc::new(Image::open(&directory.path().join("image"), None).expect("opens"));
        let file = StateFile::new(directory.path().join("state"));
        let identity = source.identity().expect("is told");
        let state =
            State { source: identity, target: "export".into(), size_bytes: 4 * MIB, progress: Progress::none() };
        Fixture { directory, file, state, source, memory: Memory::new(4 * MIB).await }
    }

    fn transfer(&mut self) -> Transfer<'_> {
        Transfer {
            source: End::Image(Arc::clone(&self.source)),
            target: self.memory.target(true),
            file: &self.file,
            state: &mut self.state,
            begin_anew: "with --overwrite",
        }
    }
}

/// A copy that was found to be wrong stayed noted as done: the same command with `--resume` had nothing to copy, and succeeded.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_reads_back_otherwise_is_nothing_to_go_on_with() {
    let mut fixture = Fixture::new().await;
    fixture.transfer().run().await.expect("is copied");
    fixture.transfer().verify().await.expect("is the same");
    assert!(fixture.file.exists(), "until its caller is done");
    fixture.memory.fill(MIB, 512, 8).await;
    let noted = fixture.state.clone();
    let said = fixture.transfer().verify().await.expect_err("must be refused").to_string();
    assert!(said.contains("reads back otherwise") && said.contains("begin anew with --overwrite"), "{said}");
    let said = fixture.file.resume(&noted, "with --overwrite").expect_err("is gone").to_string();
    assert!(said.contains("nothing to resume"), "{said}");
    // Also where what noted it could not be removed.
    let said = fixture.transfer().go_on().await.expect_err("must be refused").to_string();
    assert!(said.contains("does not hold any more what was copied"), "{said}");
}

/// Only a resumed import looked whether its image had been changed: one that was written while it was copied became a volume of no single
/// moment, and the command succeeded.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_changed_while_it_was_copied_is_told() {
    let mut fixture = Fixture::new().await;
    let file = std::fs::File::options().write(true).open(fixture.directory.path().join("image")).expect("opens");
    file.set_modified(std::time::UNIX_EPOCH).expect("is changed");
    let said = fixture.transfer().run().await.expect_err("must be refused").to_string();
    assert!(said.contains("the image was changed while it was copied") && said.contains("--overwrite"), "{said}");
    assert!(!fixture.file.exists(), "there is nothing to go on with");
}
