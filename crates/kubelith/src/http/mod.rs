//! The shell around the core: TLS, identities, negotiation, streams. Decides nothing about objects.

mod authenticate;
mod body;
mod discovery;
mod file_logs;
mod info;
mod logs;
pub mod metrics;
mod negotiate;
mod nodes;
mod openapi;
mod options;
mod query;
mod resources;
mod reviews;
mod router;
mod server;
mod watch;
mod writes;

pub use authenticate::Authenticator;
pub use body::{Answer, BoxError, HttpBody, answer, full, json, received, refusal, streamed, text};
pub use file_logs::FileLogs;
pub use logs::{LogOptions, LogRequest, LogSource, LogStream};
pub use openapi::Documents;
pub use router::{Aggregated, App, Handler};
pub use server::{Running, ServeError, bind, serve};
