//! Who the platform's own processes are towards the API server.

use holdfast_kubelith::UserInfo;

/// A process of the platform, or its administrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity<'a> {
    /// The home's user.
    Admin,
    /// Product controllers.
    Controller,
    /// Control loops of the embedded plane.
    Loops,
    /// Console, VNC and port-forward.
    Gateway,
    /// The runtime of a node of this name.
    Runtime(&'a str),
    /// The agent of a node of this name.
    Agent(&'a str),
}

impl Identity<'_> {
    /// User name.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Admin => "kubernetes-admin".to_owned(),
            Self::Controller => "system:holdfast:controller".to_owned(),
            Self::Loops => "system:holdfast:loops".to_owned(),
            Self::Gateway => "system:holdfast:gateway".to_owned(),
            Self::Runtime(node) => format!("system:node:{node}"),
            Self::Agent(node) => format!("system:holdfast:agent:{node}"),
        }
    }

    /// Groups.
    #[must_use]
    pub fn groups(self) -> &'static [&'static str] {
        match self {
            Self::Admin => &["system:masters"],
            Self::Controller | Self::Loops | Self::Gateway => &["system:holdfast"],
            Self::Runtime(_) => &["system:nodes"],
            Self::Agent(_) => &["system:holdfast:agents"],
        }
    }

    /// As the API server authenticates it.
    #[must_use]
    pub fn user(self) -> UserInfo {
        UserInfo::authenticated(&self.name(), self.groups())
    }
}
