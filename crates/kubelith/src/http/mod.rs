//! The shell around the core: TLS, identities, negotiation, streams. Decides nothing about objects.

mod authenticate;
mod body;
mod discovery;
mod info;
mod logs;
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
pub use body::{Answer, AnswerBody, BoxError, answer, full, json, refusal, streamed, text};
pub use logs::{LogOptions, LogSource};
pub use router::{Aggregated, App, Handler};
pub use server::{Running, ServeError, bind, serve};
pub use openapi::Documents;
