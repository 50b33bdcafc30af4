//! The durable store: one journal (SQLite, or memory for simulations) below one in-memory truth.
//!
//! Every read and watch is served from memory. A write is applied to memory at once, so that the next
//! write sees it, and journaled, usually by one writer thread with group commit ([`Writing`]); nobody
//! outside is told of it before it is durable: answers wait for [`Durability`], watch streams only see durable events (INV-10).

mod journal;
mod object;
mod shared;
mod sqlite;
mod state;
#[cfg(test)]
mod tests;
mod writer;

pub use journal::{Journal, Loaded, LogEntry, Record, StoreError};
pub use object::{Key, Object};
pub use shared::SharedJournal;
pub use sqlite::SqliteJournal;
pub(crate) use state::range;
pub use state::{Collection, Event, EventKind, HistoryLimits, State, TooOld};
pub use writer::{Durability, Writer, Writing};
