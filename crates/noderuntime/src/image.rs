//! Which images this runtime serves, and as what. There is no registry: an image is a program that
//! lies beside the running one, or in a directory of other builds.

use std::path::{Path, PathBuf};

/// A program of the platform that runs in pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// `holdfast/launcher:*`: one virtual machine. No network at all: everything it needs arrives
    /// through sockets and descriptors from the agent (INV-12). Ready once it listens for the agent.
    Launcher,
    /// `holdfast/importer:*`: fills a disk. Uses the node's network.
    Importer,
}

impl Image {
    /// The program for an image reference; `None` for any image that is not ours.
    #[must_use]
    pub fn of(reference: &str) -> Option<Self> {
        let name = reference.split(['@', ':']).next().unwrap_or_default();
        match name {
            "holdfast/launcher" => Some(Self::Launcher),
            "holdfast/importer" => Some(Self::Importer),
            _ => None,
        }
    }

    /// File name of the program.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Launcher => "holdfast-launcher",
            Self::Importer => "holdfast-importer",
        }
    }

    /// Whether its containers get an empty network namespace.
    #[must_use]
    pub fn is_isolated(self) -> bool {
        matches!(self, Self::Launcher)
    }

    /// A file that exists from the moment the container is ready: volume and name. `None`: ready as
    /// soon as it runs.
    #[must_use]
    pub fn ready_file(self) -> Option<(&'static str, &'static str)> {
        match self {
            // `wire::launcher::SOCKET`: whoever can connect finds a launcher that answers.
            Self::Launcher => Some(("run", "launcher.sock")),
            Self::Importer => None,
        }
    }
}

/// Where a container's programs are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// The program it runs.
    pub program: PathBuf,
    /// A directory it sees as [`BUILD_DIR`].
    pub build: Option<PathBuf>,
    /// The QEMU it uses instead of the node's, as it sees it.
    pub qemu: Option<PathBuf>,
}

/// Where a container sees the directory of its build.
pub const BUILD_DIR: &str = "/build";

/// Environment variable that names the launcher its QEMU.
pub const ENV_QEMU: &str = "HOLDFAST_QEMU";

/// File name of QEMU in a build.
const QEMU: &str = "qemu-system-x86_64";

impl Unpacked {
    /// Finds what belongs to an image reference. `<builds>/<tag>` holds another build of the launcher:
    /// its `holdfast-launcher`, a `qemu-system-x86_64` with what that needs, or both.
    ///
    /// # Errors
    /// What is missing, and where to put it.
    pub fn find(image: Image, reference: &str, programs: &Path, builds: &Path) -> Result<Self, String> {
        let own = programs.join(image.program());
        let found = |program: PathBuf, build, qemu| match program.is_file() {
            true => Ok(Self { program, build, qemu }),
            false => Err(format!(
                "{} is missing: build it (it lies beside the holdfast program)",
                program.display()
            )),
        };
        let tag = reference.split_once(':').map(|(_, tag)| tag).filter(|_| image == Image::Launcher);
        let Some(tag) = tag else { return found(own, None, None) };
        let is_name =
            tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) && !tag.starts_with('.');
        let build = builds.join(tag);
        if !is_name || !build.is_dir() {
            return match tag == env!("CARGO_PKG_VERSION") {
                true => found(own, None, None),
                false => Err(format!(
                    "there is no launcher {tag:?} on this node: this release has {}; put another \
                     build ({} or {QEMU}, or both) into {}",
                    env!("CARGO_PKG_VERSION"),
                    image.program(),
                    build.display()
                )),
            };
        }
        let theirs = build.join(image.program());
        let qemu = build.join(QEMU).is_file().then(|| Path::new(BUILD_DIR).join(QEMU));
        found(if theirs.is_file() { theirs } else { own }, Some(build), qemu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_names_a_build() {
        let dir = tempfile::tempdir().unwrap();
        let (programs, builds) = (dir.path().join("programs"), dir.path().join("firmware"));
        let put = |path: PathBuf| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        };
        put(programs.join("holdfast-launcher"));
        put(builds.join("2/qemu-system-x86_64"));
        put(builds.join("3/holdfast-launcher"));
        let find = |tag: &str| {
            let reference = format!("holdfast/launcher:{tag}");
            Unpacked::find(Image::Launcher, &reference, &programs, &builds)
        };
        let own = programs.join("holdfast-launcher");
        let release = find(env!("CARGO_PKG_VERSION")).unwrap();
        assert_eq!(release, Unpacked { program: own.clone(), build: None, qemu: None });
        let two = find("2").unwrap();
        assert_eq!((two.program, two.build), (own, Some(builds.join("2"))));
        assert_eq!(two.qemu.as_deref(), Some(Path::new("/build/qemu-system-x86_64")));
        let three = find("3").unwrap();
        assert_eq!((three.program, three.qemu), (builds.join("3/holdfast-launcher"), None));
        for missing in ["4", "..", "../programs"] {
            let why = find(missing).unwrap_err();
            assert!(why.contains("there is no launcher"), "{why}");
        }
        assert!(
            Unpacked::find(Image::Importer, "holdfast/importer:9", &programs, &builds)
                .unwrap_err()
                .contains("holdfast-importer is missing")
        );
    }

    #[test]
    fn only_our_images_are_served() {
        for (reference, image) in [
            ("holdfast/launcher:0.1.0", Some(Image::Launcher)),
            ("holdfast/launcher", Some(Image::Launcher)),
            ("holdfast/importer@sha256:00", Some(Image::Importer)),
            ("holdfast/launcher-evil:1", None),
            ("docker.io/holdfast/launcher:1", None),
            ("nginx", None),
        ] {
            assert_eq!(Image::of(reference), image, "{reference}");
        }
    }
}
