//! The Debian package, made of the programs that the tests run.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::cluster::helio;
use crate::tools::run;

/// The tree that all of this is of.
#[must_use]
pub fn tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The package, and its files below a directory.
#[derive(Debug)]
pub struct Package {
    directory: TempDir,
    file: PathBuf,
}

impl Package {
    /// Makes it, and unpacks it. `None`, and a word about it, where dpkg-dev is not installed.
    ///
    /// # Errors
    /// When the programs are not built, or it cannot be made of them.
    pub fn build() -> anyhow::Result<Option<Package>> {
        if Command::new("dpkg-shlibdeps").arg("--version").output().is_err() {
            eprintln!("skipped: dpkg-dev is not installed");
            return Ok(None);
        }
        let helio = helio()?;
        let binaries = helio.parent().unwrap_or(Path::new("."));
        let directory = tempfile::tempdir()?;
        let mut build = Command::new(tree().join("storage-node/debian/build"));
        build.arg(binaries).arg(binaries.join("libclient_lib.a")).arg(directory.path());
        // dpkg-deb(1): who installs it once need not wait for the smallest one.
        build.env("DPKG_DEB_COMPRESSOR_LEVEL", "1");
        let file = PathBuf::from(run(&mut build)?.trim());
        run(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(directory.path().join("root")))?;
        Ok(Some(Package { directory, file }))
    }

    /// The package itself.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Where this one of its files is unpacked.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join("root").join(file)
    }

    /// A field of its description.
    ///
    /// # Panics
    /// If it has none of that name.
    #[must_use]
    pub fn field(&self, name: &str) -> String {
        let told = run(Command::new("dpkg-deb").arg("--field").arg(&self.file).arg(name));
        told.expect("the package has it").trim().to_owned()
    }

    /// The text of one of its files.
    ///
    /// # Panics
    /// If it has no such file.
    #[must_use]
    pub fn text(&self, file: &str) -> String {
        std::fs::read_to_string(self.path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }
}
