//! Makes writes durable: one thread with several requests an fsync, or the caller itself.

use super::journal::{Journal, Record};
use holdfast_env::watch;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Most records in one commit: bounds the latency of the first of them.
const GROUP: usize = 512;
/// How often the history is trimmed, in seconds.
const TRIM_EVERY_S: i64 = 60;

/// Up to which revision everything is durable.
#[derive(Clone, Debug)]
pub struct Durability(watch::Receiver<Progress>);

#[derive(Clone, Debug)]
struct Progress {
    rev: u64,
    failed: Option<Arc<str>>,
}

impl Durability {
    /// Highest durable revision.
    pub fn rev(&self) -> u64 {
        self.0.borrow().rev
    }

    /// Waits until `rev` is durable.
    ///
    /// # Errors
    /// The medium failed: the text says why. Nothing more will become durable in this process.
    pub async fn reached(&self, rev: u64) -> Result<(), Arc<str>> {
        let mut progress = self.0.clone();
        let seen = progress.wait_for(|p| p.rev >= rev || p.failed.is_some()).await;
        match seen {
            Ok(p) if p.rev >= rev => Ok(()),
            Ok(p) => Err(p.failed.clone().unwrap_or_else(|| "store failed".into())),
            Err(_) => Err("the store's writer has stopped".into()),
        }
    }

    /// Waits until the writer has finished and let go of the medium.
    pub async fn closed(&self) {
        let mut progress = self.0.clone();
        while progress.changed().await.is_ok() {}
    }

    /// Waits until the medium fails; the text says why.
    pub async fn failed(&self) -> Arc<str> {
        let mut progress = self.0.clone();
        match progress.wait_for(|p| p.failed.is_some()).await {
            Ok(p) => p.failed.clone().unwrap_or_else(|| "store failed".into()),
            Err(_) => "the store's writer has stopped".into(),
        }
    }
}

/// Who makes writes durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writing {
    /// A thread of its own, so that several requests share one fsync.
    #[default]
    Thread,
    /// The caller, before the write returns: for a medium without latency, where nothing may happen
    /// out of sight of a simulation.
    Inline,
}

/// Told of records that have become durable.
type Told = Box<dyn Fn(&[Record]) + Send>;

/// Makes writes durable. Dropping it lets its thread, if it has one, finish what is queued and end.
pub struct Writer {
    way: Way,
    durability: Durability,
}

enum Way {
    Thread(Sender<Record>),
    Inline(Mutex<Scribe>),
}

impl Writer {
    /// Takes over the journal, which holds everything up to `rev`. `durable` is called after each commit
    /// with the records that became durable; `keep` is the age in seconds after which history is forgotten.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(
        journal: Box<dyn Journal>,
        writing: Writing,
        rev: u64,
        keep: i64,
        durable: impl Fn(&[Record]) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (progress, watch) = watch::channel(Progress { rev, failed: None });
        let mut scribe = Scribe { journal, progress, keep, trimmed: None, durable: Box::new(durable) };
        let way = match writing {
            Writing::Inline => Way::Inline(Mutex::new(scribe)),
            Writing::Thread => {
                let (queue, records) = channel();
                std::thread::Builder::new().name("kubelith-store".into()).spawn(move || {
                    scribe.serve(&records);
                    // Whoever waits for the end of `progress` may open the medium again.
                    drop(scribe.journal);
                    drop(scribe.progress);
                })?;
                Way::Thread(queue)
            }
        };
        Ok(Self { way, durability: Durability(watch) })
    }

    /// Takes one change. Revisions must come in order.
    pub fn append(&self, record: Record) {
        match &self.way {
            // A send fails only after the thread ended on an error, which `Durability` reports to every waiter.
            Way::Thread(queue) => {
                let _ = queue.send(record);
            }
            Way::Inline(scribe) => scribe.lock().write(&[record]),
        }
    }

    /// What has become durable.
    pub fn durability(&self) -> &Durability {
        &self.durability
    }
}

/// Owns the journal.
struct Scribe {
    journal: Box<dyn Journal>,
    progress: watch::Sender<Progress>,
    keep: i64,
    /// When the history was trimmed last, by the times of the records.
    trimmed: Option<i64>,
    durable: Told,
}

impl Scribe {
    /// Writes what is queued until the queue's other end is gone or the medium fails.
    fn serve(&mut self, records: &Receiver<Record>) {
        let mut group = Vec::new();
        while let Ok(first) = records.recv() {
            group.push(first);
            while group.len() < GROUP {
                match records.try_recv() {
                    Ok(next) => group.push(next),
                    Err(_) => break,
                }
            }
            self.write(&group);
            if self.has_failed() {
                return;
            }
            group.clear();
        }
    }

    fn has_failed(&self) -> bool {
        self.progress.borrow().failed.is_some()
    }

    /// Makes a group durable and tells of it; after a failure nothing more is written.
    fn write(&mut self, group: &[Record]) {
        if self.has_failed() {
            return;
        }
        if holdfast_env::mutant!("answered-before-durable") && group.iter().any(|record| record.rev % 16 == 0)
        {
            self.progress.send_modify(|p| p.rev = group.last().map_or(0, |last| last.rev));
            return (self.durable)(group);
        }
        if let Err(error) = self.journal.append(group) {
            tracing::error!(%error, "store failed; no further write is accepted");
            self.progress.send_modify(|p| p.failed = Some(error.to_string().into()));
            return;
        }
        let (rev, at) = group.last().map_or((0, 0), |last| (last.rev, last.at));
        // The revision first: a watcher that `durable` wakes reads up to it, and is not woken again.
        self.progress.send_modify(|p| p.rev = rev);
        (self.durable)(group);
        self.trim(at);
    }

    fn trim(&mut self, now: i64) {
        // A clock that was set back must not stop the trimming until it has caught up.
        if (now - *self.trimmed.get_or_insert(now)).abs() < TRIM_EVERY_S {
            return;
        }
        self.trimmed = Some(now);
        if let Err(error) = self.journal.trim(now - self.keep) {
            tracing::warn!(%error, "history not trimmed");
        }
    }
}
