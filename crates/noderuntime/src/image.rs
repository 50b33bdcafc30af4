//! Which images this runtime serves, and as what. There is no registry: an image is a program that
//! lies beside the running one.

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

    /// Path of the program.
    #[must_use]
    pub fn path(self, programs: &Path) -> PathBuf {
        programs.join(self.program())
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

#[cfg(test)]
mod tests {
    use super::*;

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
