//! Errors of a pass and what the runner does about each.

/// What the runner does after a failed pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// The world moved on while we planned: plan again at once.
    Conflict,
    /// May pass by itself: again after a growing delay.
    Transient,
    /// The API refused what we asked for; only a change of the world helps. Tried again seldom.
    Invalid,
    /// Our mistake: logged as an error, tried again after a growing delay.
    Bug,
}

impl Class {
    /// The word used in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Conflict => "conflict",
            Class::Transient => "transient",
            Class::Invalid => "invalid",
            Class::Bug => "bug",
        }
    }
}

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request to the API failed.
    #[error("{step} {what}: {source}")]
    Api {
        /// The step, such as `create` or `write status of`.
        step: &'static str,
        /// The object concerned.
        what: String,
        /// What the client reported.
        source: kube::Error,
    },
    /// Every candidate name of an object to create belongs to something else.
    #[error("create {what}: every name tried is taken by an object of another owner")]
    NamesTaken {
        /// The object concerned.
        what: String,
    },
    /// Something that should be impossible.
    #[error("{0}")]
    Bug(String),
    /// Something outside the API is not usable at the moment.
    #[error("{0}")]
    Transient(String),
}

impl Error {
    /// Wraps a client error with the step and object it belongs to.
    pub fn api(step: &'static str, what: impl std::fmt::Display, source: kube::Error) -> Self {
        Self::Api { step, what: what.to_string(), source }
    }

    /// What the runner should do.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Error::Api { source: kube::Error::Api(status), .. } => match status.code {
                404 | 409 => Class::Conflict,
                400 | 405 | 422 => Class::Invalid,
                // 403 too: a quota, or a namespace that is still being furnished.
                _ => Class::Transient,
            },
            Error::Api { source: kube::Error::SerdeError(_), .. } | Error::Bug(_) => Class::Bug,
            Error::Api { .. } | Error::NamesTaken { .. } | Error::Transient(_) => Class::Transient,
        }
    }
}
