//! The synchronous heart: every rule of reading and writing objects, without sockets, files or async.
//!
//! Writes are serialised by one lock held over the whole request, so each decision (quota, names,
//! admission, eviction) sees the state it commits to. An answer may be sent only after
//! [`Core::durability`] has reached [`Core::rev`] as it was when the call returned.

mod call;
mod create;
mod definitions;
mod delete;
mod escalation;
mod evict;
mod patch;
mod pods;
mod quota;
mod read;
mod scale;
mod txn;
mod update;
mod view;
mod watch;

pub use call::{Body, Call, DeleteOptions, Deleted, PatchType, Propagation, Shown, Written};
pub use read::{ListOptions, ListResult, ReadVersion};
pub use watch::{Filter, Observed, WatchStart};

use crate::admission::Admission;
use crate::auth::Rbac;
use crate::registry::{Definition, Registry};
use crate::store::{Durability, HistoryLimits, Journal, State, StoreError, Writer, Writing};
use holdfast_env::watch as signal;
use holdfast_env::{Clock, Entropy, Stream};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What the core is built from.
pub struct Parts {
    /// Where writes become durable.
    pub journal: Box<dyn Journal>,
    /// By whom.
    pub writing: Writing,
    /// Rules asked on every write, in order.
    pub admission: Vec<Arc<dyn Admission>>,
    /// Source of timestamps.
    pub clock: Clock,
    /// Source of uids and generated names.
    pub entropy: Entropy,
    /// How much watch history stays in memory.
    pub history: HistoryLimits,
}

/// Why the core cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The journal cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored object is damaged.
    #[error("the store holds an object that is not JSON: {0}; restore a backup")]
    Damaged(#[from] serde_json::Error),
    /// The writer thread cannot be started.
    #[error("cannot start the store's writer thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// The API server without its shell.
pub struct Core {
    state: Arc<RwLock<State>>,
    registry: signal::Sender<Arc<Registry>>,
    /// What the registry was built from.
    compiled: Mutex<Vec<Arc<Definition>>>,
    write: Mutex<()>,
    writer: Writer,
    admission: Vec<Arc<dyn Admission>>,
    rbac: Rbac,
    clock: Clock,
    entropy: Mutex<Stream>,
}

impl Core {
    /// Reads the journal back and makes the core ready.
    ///
    /// # Errors
    /// The journal or an object in it cannot be read.
    pub fn open(parts: Parts) -> Result<Self, OpenError> {
        let Parts { mut journal, writing, admission, clock, entropy, history } = parts;
        let loaded = journal.load()?;
        let state = Arc::new(RwLock::new(State::restore(loaded, history)?));
        let rev = state.read().rev();
        let shared = state.clone();
        let writer = Writer::start(journal, writing, rev, history.seconds, move |records| {
            let state = shared.read();
            let kinds: BTreeSet<&str> = records.iter().map(|r| &*r.storage).collect();
            let last = records.last().map_or(0, |r| r.rev);
            for kind in kinds {
                state.publish(kind, last);
            }
        })?;
        let core = Self {
            state,
            registry: signal::Sender::new(Arc::new(Registry::build(0, &[]))),
            compiled: Mutex::default(),
            write: Mutex::new(()),
            writer,
            admission,
            rbac: Rbac::default(),
            clock,
            entropy: Mutex::new(entropy.stream("kubelith")),
        };
        core.begin().refresh_registry();
        // What was written before the last end may have been accounted after it, which never came.
        let _ = core.begin().recount_all();
        Ok(core)
    }

    /// What is served now.
    pub fn registry(&self) -> Arc<Registry> {
        self.registry.borrow().clone()
    }

    /// Tells of changes to what is served.
    pub fn registry_changes(&self) -> signal::Receiver<Arc<Registry>> {
        self.registry.subscribe()
    }

    /// Revision of the newest write, durable or not.
    pub fn rev(&self) -> u64 {
        self.state.read().rev()
    }

    /// What has become durable.
    pub fn durability(&self) -> &Durability {
        self.writer.durability()
    }

    /// Now.
    pub fn now(&self) -> chrono::DateTime<chrono::Utc> {
        let now = self.clock.now();
        let nanos = u32::try_from(now.subsec_nanosecond()).unwrap_or(0);
        chrono::DateTime::from_timestamp(now.as_second(), nanos).unwrap_or_default()
    }

    /// Permissions, from the stored roles and bindings.
    pub fn rbac(&self) -> &Rbac {
        &self.rbac
    }

    fn begin(&self) -> txn::Txn<'_> {
        txn::Txn::new(self, self.write.lock())
    }
}
