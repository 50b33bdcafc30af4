//! Events about objects: written once, counted when repeated, never a reason to fail a pass.
//!
//! They are written a moment later than what they are about, so that they take no processor from a guest that
//! changes nodes at that very moment.
//!
//! An event's name is made of what it says, so that a controller that was restarted, or another one that
//! leads now, counts on instead of writing a second one.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use holdfast_env::{Clock, Timestamp};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tracing::debug;

use crate::plan::{Note, NoteKind};

/// How many distinct events are remembered for counting repetitions.
const REMEMBERED_MAX: usize = 4096;
/// How many events wait to be written; more, and the oldest is lost.
const WAITING_MAX: usize = 1024;
/// How long an event waits.
const LATER: SignedDuration = SignedDuration::from_millis(300);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Same {
    controller: &'static str,
    uid: Option<String>,
    reason: String,
    message: String,
}

#[derive(Clone, Debug)]
struct Written {
    namespace: String,
    name: String,
    count: i32,
}

/// What happened, by whose word and when.
#[derive(Clone, Debug)]
struct Told {
    controller: &'static str,
    note: Note,
    at: Timestamp,
}

#[derive(Debug, Default)]
pub(crate) struct Recorder {
    waiting: Mutex<VecDeque<Told>>,
    more: Notify,
    written: Mutex<BTreeMap<Same, Written>>,
}

impl Recorder {
    /// Takes an event that happens `at` this instant.
    pub(crate) fn record(&self, controller: &'static str, note: Note, at: Timestamp) {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= WAITING_MAX
            && let Some(lost) = waiting.pop_front()
        {
            debug!(reason = lost.note.reason, about = %lost.note.about, "event lost, too many wait");
        }
        waiting.push_back(Told { controller, note, at });
        drop(waiting);
        self.more.notify_one();
    }

    /// Writes what is told, until it is dropped.
    pub(crate) async fn run(&self, client: &Client, clock: &Clock) {
        loop {
            let next = self.waiting.lock().pop_front();
            let Some(told) = next else {
                self.more.notified().await;
                continue;
            };
            clock.sleep_until(told.at.checked_add(LATER).unwrap_or(told.at)).await;
            self.write(client, &told).await;
        }
    }

    /// Writes or counts the event; failures are logged only.
    async fn write(&self, client: &Client, told: &Told) {
        let note = &told.note;
        let same = Same {
            controller: told.controller,
            uid: note.about.uid.clone(),
            reason: note.reason.clone(),
            message: note.message.clone(),
        };
        let known = self.written.lock().get(&same).cloned();
        let result = match known {
            Some(written) => self.count(client, &same, written, told.at).await,
            None => self.create(client, note, same, told.at).await,
        };
        if let Err(error) = result {
            debug!(%error, reason = note.reason, about = %note.about, "event lost");
        }
    }

    async fn count(
        &self,
        client: &Client,
        same: &Same,
        mut was: Written,
        now: Timestamp,
    ) -> kube::Result<()> {
        was.count += 1;
        let api: Api<Event> = Api::namespaced(client.clone(), &was.namespace);
        let body = json!({ "count": was.count, "lastTimestamp": Time(now) });
        match api.patch(&was.name, &PatchParams::default(), &Patch::Merge(body)).await {
            Ok(_) => {
                self.remember(same.clone(), was);
                Ok(())
            }
            Err(error) => {
                // Most likely expired: the next repetition starts a new one.
                self.written.lock().remove(same);
                Err(error)
            }
        }
    }

    async fn create(&self, client: &Client, note: &Note, same: Same, now: Timestamp) -> kube::Result<()> {
        let about = &note.about;
        let controller = same.controller;
        let namespace = if about.namespace.is_empty() { "default" } else { &about.namespace };
        let name = name(&about.name, &same);
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some(about.api.api_version.clone()),
                kind: Some(about.api.kind.clone()),
                name: Some(about.name.clone()),
                namespace: (!about.namespace.is_empty()).then(|| about.namespace.clone()),
                uid: about.uid.clone(),
                ..ObjectReference::default()
            },
            type_: Some(match note.kind {
                NoteKind::Normal => "Normal".to_owned(),
                NoteKind::Warning => "Warning".to_owned(),
            }),
            reason: Some(note.reason.clone()),
            message: Some(note.message.clone()),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource { component: Some(format!("holdfast-{controller}")), host: None }),
            reporting_component: Some(format!("holdfast-{controller}")),
            ..Event::default()
        };
        let api: Api<Event> = Api::namespaced(client.clone(), namespace);
        let mut written = Written { namespace: namespace.to_owned(), name, count: 1 };
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {
                // An earlier process of ours said the same.
                let known = api.get(&written.name).await?;
                written.count = known.count.unwrap_or(1);
                return self.count(client, &same, written, now).await;
            }
            Err(error) => return Err(error),
        }
        self.remember(same, written);
        Ok(())
    }

    fn remember(&self, same: Same, written: Written) {
        let mut all = self.written.lock();
        if all.len() >= REMEMBERED_MAX {
            all.clear();
        }
        all.insert(same, written);
    }
}

/// The event's name: the object's, and a digest of what is said.
fn name(about: &str, same: &Same) -> String {
    let mut digest = DefaultHasher::new();
    same.hash(&mut digest);
    format!("{about}.{:016x}", digest.finish())
}
