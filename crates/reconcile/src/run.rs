//! Runs controllers: watches feed queues, passes observe, plan and apply.

use std::any::Any;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use holdfast_env::{Clock, Entropy, Stream, Timestamp, work};
use jiff::SignedDuration;
use kube::Client;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{Instrument as _, debug, error, info, info_span, warn};

use crate::apply::Tools;
use crate::cache::Kind;
use crate::event::Recorder;
use crate::plan::controller_of;
use crate::queue::Queue;
use crate::{Cache, Caches, Class, Error, Key, Metrics, Plan, metrics};

/// What a pass is given besides its key.
#[derive(Clone)]
pub struct Pass {
    /// The instant of the pass; belongs into `Observed`.
    pub now: Timestamp,
    /// Randomness of the pass; belongs into `Observed` where a plan draws.
    pub entropy: Stream,
    /// For the rare read that no cache serves (a Secret, a log line).
    pub client: Client,
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass").field("now", &self.now).finish_non_exhaustive()
    }
}

/// One controller. It writes the status of one kind; nobody else does.
pub trait Controller: Send + Sync + 'static {
    /// Everything a plan depends on, as plain data.
    type Observed: fmt::Debug + Send;

    /// Short name: metric label and field manager (`holdfast-<name>`).
    fn name(&self) -> &'static str;

    /// Declares which changes of which kinds concern which keys.
    fn watches(&self, on: &mut Watches);

    /// Reads the caches. `None`: nothing of this key is there, nothing to do.
    ///
    /// # Errors
    /// When something needed cannot be read.
    fn observe(
        &self,
        key: &Key,
        pass: Pass,
    ) -> impl Future<Output = Result<Option<Self::Observed>, Error>> + Send;

    /// Decides. Pure: no clock, no I/O, no randomness of its own (INV-9).
    fn plan(observed: &Self::Observed) -> Plan;
}

/// Collects the watches of one controller.
#[derive(Clone, Debug)]
pub struct Watches {
    queue: Queue,
}

impl Watches {
    /// Changes of an object concern its own key.
    pub fn own<K: Kind>(&mut self, cache: &Cache<K>) -> &mut Self {
        self.map(cache, |object| vec![Key::of(object)])
    }

    /// Changes of an object concern its controller owner of this kind, in its namespace.
    pub fn owned_by<Owner: Kind, K: Kind>(&mut self, cache: &Cache<K>) -> &mut Self {
        self.map(cache, |object| {
            controller_of(object)
                .filter(|owner| owner.kind == Owner::kind(&()))
                .map(|owner| Key::new(object.meta().namespace.clone().unwrap_or_default(), &owner.name))
                .into_iter()
                .collect()
        })
    }

    /// Changes of an object concern the keys that `keys` names; it is asked for the old and the
    /// new state.
    pub fn map<K: Kind>(
        &mut self,
        cache: &Cache<K>,
        keys: impl Fn(&K) -> Vec<Key> + Send + Sync + 'static,
    ) -> &mut Self {
        let queue = self.queue.clone();
        cache.listen(Box::new(move |object| {
            for key in keys(object) {
                queue.push(key);
            }
        }));
        self
    }
}

/// Passes of one controller that may run at the same time (on different keys).
const PARALLEL_MAX: usize = 16;

/// First delay after a failed pass, doubled with each further failure of the key.
const RETRY_FIRST_MS: i64 = 50;
/// Longest delay after a failure that may pass by itself.
const RETRY_CAP_MS: i64 = 30_000;
/// Delay after a conflict: the watch is about to deliver what we did not know.
const CONFLICT_MS: i64 = 10;
/// Shortest delay after a refusal by the API.
const INVALID_MS: i64 = 1_000;

/// When to try again after the `failures`-th failure in a row.
fn retry_delay(class: Class, failures: u32) -> SignedDuration {
    let grown = RETRY_FIRST_MS.saturating_mul(1 << failures.min(16)).min(RETRY_CAP_MS);
    SignedDuration::from_millis(match class {
        // A conflict that repeats is not one any more: slow down.
        Class::Conflict if failures < 5 => CONFLICT_MS,
        Class::Conflict | Class::Transient | Class::Bug => grown,
        Class::Invalid => grown.max(INVALID_MS),
    })
}

struct Shared {
    client: Client,
    caches: Caches,
    clock: Clock,
    entropy: Entropy,
    metrics: Metrics,
    recorder: Recorder,
    passes: AtomicU64,
}

type Driver = Box<dyn FnOnce(Arc<Shared>) -> BoxFuture<'static, ()> + Send>;

/// Runs controllers on shared caches.
pub struct Runtime {
    shared: Arc<Shared>,
    drivers: Vec<(&'static str, Driver)>,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.drivers.iter().map(|(name, _)| name)).finish()
    }
}

impl Runtime {
    /// An empty runtime.
    #[must_use]
    pub fn new(client: Client, clock: Clock, entropy: Entropy, metrics: Metrics) -> Self {
        let shared = Shared {
            client,
            caches: Caches::default(),
            clock,
            entropy,
            metrics,
            recorder: Recorder::default(),
            passes: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), drivers: Vec::new() }
    }

    /// The shared caches, to build controllers with.
    #[must_use]
    pub fn caches(&self) -> &Caches {
        &self.shared.caches
    }

    /// Adds a controller.
    pub fn add<C: Controller>(&mut self, controller: C) -> &mut Self {
        let queue = Queue::default();
        controller.watches(&mut Watches { queue: queue.clone() });
        let name = controller.name();
        let driver: Driver = Box::new(move |shared| drive(Arc::new(controller), queue, shared).boxed());
        self.drivers.push((name, driver));
        self
    }

    /// Watches, waits for the first lists, then runs every controller until the future is
    /// dropped. Dropping it stops every pass at its next await point.
    pub async fn run(self) {
        let mut tasks = JoinSet::new();
        let watches = AbortOnDrop(self.shared.caches.start(&self.shared.client));
        self.shared.caches.ready().await;
        info!(controllers = self.drivers.len(), "caches are filled, controllers start");
        for (_, driver) in self.drivers {
            tasks.spawn(driver(self.shared.clone()));
        }
        let shared = self.shared.clone();
        tasks.spawn(async move { shared.recorder.run(&shared.client, &shared.clock).await });
        while tasks.join_next().await.is_some() {}
        drop(watches);
    }
}

struct AbortOnDrop(Vec<tokio::task::JoinHandle<()>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// What a controller remembers of its keys. Lost with the process, and nothing goes wrong.
#[derive(Debug, Default)]
struct Memory {
    /// Failed passes in a row.
    failures: BTreeMap<Key, u32>,
    /// Since when a status change waits for more of its kind.
    waiting: BTreeMap<Key, Timestamp>,
}

impl Memory {
    /// Until when the plan of `key` waits.
    fn put_off(&mut self, key: &Key, plan: Option<&Plan>, now: Timestamp) -> Option<Timestamp> {
        let until = plan.and_then(|plan| plan.put_off(self.waiting.get(key).copied(), now));
        match until {
            Some(_) => {
                self.waiting.entry(key.clone()).or_insert(now);
            }
            None => {
                self.waiting.remove(key);
            }
        }
        until
    }
}

async fn drive<C: Controller>(controller: Arc<C>, queue: Queue, shared: Arc<Shared>) {
    let memory: Arc<Mutex<Memory>> = Arc::default();
    let slots = Arc::new(Semaphore::new(PARALLEL_MAX));
    let mut passes = JoinSet::new();
    loop {
        while passes.try_join_next().is_some() {}
        let slot = slots.clone().acquire_owned().await.expect("invariant: the semaphore is never closed");
        let key = queue.take(&shared.clock).await;
        shared.metrics.set(
            "holdfast_controller_queue_length",
            "Keys waiting for a pass.",
            &[("controller", controller.name())],
            #[expect(clippy::cast_precision_loss, reason = "a queue is far shorter than 2^52")]
            {
                queue.len() as f64
            },
        );
        let (controller, shared, queue, memory) =
            (controller.clone(), shared.clone(), queue.clone(), memory.clone());
        passes.spawn(async move {
            let wake = guarded_pass(&*controller, &key, &shared, &memory).await;
            queue.done(&key, wake);
            drop(slot);
        });
    }
}

/// One pass with its bookkeeping; returns when to look at the key again.
async fn guarded_pass<C: Controller>(
    controller: &C,
    key: &Key,
    shared: &Shared,
    memory: &Mutex<Memory>,
) -> Option<Timestamp> {
    let span = info_span!("pass", controller = controller.name(), %key);
    let started = Instant::now();
    let result =
        AssertUnwindSafe(pass(controller, key, shared, memory).instrument(span.clone())).catch_unwind().await;
    let _entered = span.enter();
    let result =
        result.unwrap_or_else(|panic| Err(Error::Bug(format!("the pass panicked: {}", panic_text(&*panic)))));
    let label = result.as_ref().map_or_else(|error| error.class().as_str(), |_| "ok");
    metrics::pass(&shared.metrics, controller.name(), label, started.elapsed());
    match result {
        Ok(wake) => {
            memory.lock().failures.remove(key);
            wake
        }
        Err(failure) => {
            let count = {
                let mut memory = memory.lock();
                let count = memory.failures.entry(key.clone()).or_default();
                *count += 1;
                *count
            };
            match failure.class() {
                Class::Conflict => debug!(%failure, "conflict, planning again"),
                Class::Transient => warn!(%failure, count, "pass failed, it will be repeated"),
                Class::Invalid => warn!(%failure, count, "the API refused a write"),
                Class::Bug => error!(%failure, count, "pass failed by a mistake of ours"),
            }
            shared.clock.now().checked_add(retry_delay(failure.class(), count - 1)).ok()
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

async fn pass<C: Controller>(
    controller: &C,
    key: &Key,
    shared: &Shared,
    memory: &Mutex<Memory>,
) -> Result<Option<Timestamp>, Error> {
    let number = shared.passes.fetch_add(1, Ordering::Relaxed);
    let now = shared.clock.now();
    let input = Pass {
        now,
        entropy: shared.entropy.pass(controller.name(), &key.to_string(), number),
        client: shared.client.clone(),
    };
    let (decided, took) = work::busy(decide(controller, key, input)).await;
    metrics::decided(&shared.metrics, controller.name(), took);
    work::note("controller", controller.name(), took);
    let decided = decided?;
    let put_off = memory.lock().put_off(key, decided.as_ref(), now);
    let Some(plan) = decided else { return Ok(None) };
    if let Some(until) = put_off {
        debug!(why = %reasons(&plan), "its news may wait for more");
        return Ok(Some(plan.wake.map_or(until, |wake| wake.min(until))));
    }
    if plan.is_empty() {
        debug!(why = %reasons(&plan), "nothing to do");
    } else {
        info!(why = %reasons(&plan), effects = plan.effects.len(), status = plan.status.is_some(), "planned");
    }
    let tools = Tools {
        client: &shared.client,
        caches: &shared.caches,
        clock: &shared.clock,
        metrics: &shared.metrics,
        recorder: &shared.recorder,
        controller: controller.name(),
    };
    tools.apply(&plan).await?;
    Ok(plan.wake)
}

async fn decide<C: Controller>(controller: &C, key: &Key, input: Pass) -> Result<Option<Plan>, Error> {
    let observed = controller.observe(key, input).await?;
    Ok(observed.map(|observed| C::plan(&observed)))
}

fn reasons(plan: &Plan) -> String {
    plan.why.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;
    use crate::{Effect, NoteKind, Patch};

    #[test]
    fn retries_slow_down_and_conflicts_are_retried_at_once() {
        assert_eq!(retry_delay(Class::Conflict, 0).as_millis(), 10);
        assert_eq!(retry_delay(Class::Conflict, 7).as_millis(), 6_400);
        assert_eq!(retry_delay(Class::Transient, 0).as_millis(), 50);
        assert_eq!(retry_delay(Class::Transient, 1).as_millis(), 100);
        assert_eq!(retry_delay(Class::Transient, 40).as_millis(), 30_000);
        assert_eq!(retry_delay(Class::Invalid, 0).as_millis(), 1_000);
    }

    /// A plan with a status change, and one that also does something.
    fn plans() -> (Plan, Plan) {
        let object = ConfigMap::default();
        let status = Patch::status(&object, None, &json!({ "a": 1 }));
        let mut news = Plan { status, ..Plan::default() };
        news.unhurried().then(Effect::event(&object, NoteKind::Normal, "News", "text"));
        let mut act = news.clone();
        act.then(Effect::delete(&object));
        (news, act)
    }

    #[test]
    fn news_that_nobody_waits_for_wait_for_more_of_their_kind() {
        let key = Key::new("ns", "a");
        let at = |ms| Timestamp::from_millisecond(ms).unwrap();
        let (news, act) = plans();
        let hurried = Plan { patience: SignedDuration::ZERO, ..news.clone() };
        let mut memory = Memory::default();
        // The time of the first counts, however often there is more.
        assert_eq!(memory.put_off(&key, Some(&news), at(0)), Some(at(250)));
        assert_eq!(memory.put_off(&key, Some(&news), at(200)), Some(at(250)));
        assert_eq!(memory.put_off(&Key::new("ns", "b"), Some(&news), at(200)), Some(at(450)), "by key");
        assert_eq!(memory.put_off(&key, Some(&news), at(250)), None);
        // What is written once is new the next time.
        assert_eq!(memory.put_off(&key, Some(&news), at(300)), Some(at(550)));
        for ends in [Some(&hurried), Some(&act), Some(&Plan::quiet("nothing")), None] {
            assert_eq!(memory.put_off(&key, ends, at(400)), None, "{ends:?}");
            assert_eq!(memory.put_off(&key, Some(&news), at(400)), Some(at(650)), "after {ends:?}");
        }
    }
}
