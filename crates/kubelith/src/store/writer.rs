//! The one thread that makes writes durable, several requests with one fsync.

use super::journal::{Journal, Record, StoreError};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Most records in one commit: bounds the latency of the first of them.
const GROUP: usize = 512;
/// How often the history is trimmed.
const TRIM_EVERY: Duration = Duration::from_secs(60);

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

/// Handle to the writer thread. Dropping it lets the thread finish what is queued and end.
pub struct Writer {
    queue: Sender<Record>,
    durability: Durability,
}

impl Writer {
    /// Starts the thread. `durable` is called after each commit with the records that became durable;
    /// `keep` is the age in seconds after which history is forgotten.
    pub fn start(
        mut journal: Box<dyn Journal>,
        rev: u64,
        keep: i64,
        durable: impl Fn(&[Record]) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (queue, records) = channel();
        let (progress, watch) = watch::channel(Progress { rev, failed: None });
        std::thread::Builder::new().name("kubelith-store".into()).spawn(move || {
            if let Err(error) = serve(&mut *journal, &records, keep, &progress, &durable) {
                tracing::error!(%error, "store failed; no further write is accepted");
                progress.send_modify(|p| p.failed = Some(error.to_string().into()));
            }
            // Whoever waits for the end of `progress` may open the medium again.
            drop(journal);
            drop(progress);
        })?;
        Ok(Self { queue, durability: Durability(watch) })
    }

    /// Queues one change. Revisions must be queued in order.
    pub fn append(&self, record: Record) {
        // A send fails only after the thread ended on an error, which `Durability` reports to every waiter.
        let _ = self.queue.send(record);
    }

    /// What has become durable.
    pub fn durability(&self) -> &Durability {
        &self.durability
    }
}

fn serve(
    journal: &mut dyn Journal,
    records: &Receiver<Record>,
    keep: i64,
    progress: &watch::Sender<Progress>,
    durable: &dyn Fn(&[Record]),
) -> Result<(), StoreError> {
    let mut group = Vec::new();
    let mut trimmed = Instant::now();
    while let Ok(first) = records.recv() {
        group.push(first);
        while group.len() < GROUP {
            match records.try_recv() {
                Ok(next) => group.push(next),
                Err(_) => break,
            }
        }
        journal.append(&group)?;
        let (rev, at) = group.last().map_or((0, 0), |last| (last.rev, last.at));
        // The revision first: a watcher that `durable` wakes reads up to it, and is not woken again.
        progress.send_modify(|p| p.rev = rev);
        durable(&group);
        group.clear();
        if trimmed.elapsed() >= TRIM_EVERY {
            trimmed = Instant::now();
            if let Err(error) = journal.trim(at - keep) {
                tracing::warn!(%error, "history not trimmed");
            }
        }
    }
    Ok(())
}
