//! The driver of one launcher: connects, decides ([`super::plan`]), acts, and follows the launcher to
//! its certain end. A crash of the agent at any point costs nothing but time: the next driver finds
//! the same launcher, whose answers to repeated requests are the same.

use std::sync::Arc;
use std::time::Duration;

use holdfast_api::engine::ExitCause;
use holdfast_env::watch;
use holdfast_wire::Id;
use holdfast_wire::launcher::{Event, MigrationEvent, MoveStage, Request, StopWhy, Verdict, VmState};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::conversation::{Conversation, Hello, PROMPT, TalkError};
use super::plan::{Asked, Observed, Step, plan};
use super::retry::Retry;
use super::start::{Start, StepError};
use crate::host::{Look, Outside};
use crate::migration::Outgoing;
use crate::node_agent::{Connected, NodeAgent};
use crate::peers::{PeerError, chain};
use crate::report::{self, End, Facts};

/// The clock of waits that nothing else wakes.
const TICK: Duration = Duration::from_secs(1);
/// A launcher that refuses this often to start QEMU never will.
const REFUSALS: u32 = 3;
/// A directory whose pod the API does not know may be younger than the watch, for this long.
const UNKNOWN_POD: Duration = Duration::from_secs(10);

/// The driver of the launcher of one pod.
pub struct Driver {
    agent: Arc<NodeAgent>,
    pod_uid: String,
    facts: watch::Sender<Facts>,
    /// Why the platform itself ended the launcher before its guest ran.
    given_up: Option<End>,
    outgoing: Option<Outgoing>,
    /// The source waits for the target's word; when to ask for it. The word itself normally comes
    /// within milliseconds.
    undecided: Option<Instant>,
    began: Instant,
    seen_pod: bool,
}

impl Driver {
    /// A driver for the launcher of this pod, and what it finds out.
    pub fn new(agent: Arc<NodeAgent>, pod_uid: String) -> (Self, watch::Receiver<Facts>) {
        let facts = Facts {
            id: Id { pod_uid: pod_uid.clone(), ..Id::default() },
            node: agent.config.node.clone(),
            boot_id: agent.config.boot_id.clone(),
            ..Facts::default()
        };
        let facts = watch::Sender::new(facts);
        let receiver = facts.subscribe();
        let began = Instant::now();
        let driver = Self {
            agent,
            pod_uid,
            facts,
            given_up: None,
            outgoing: None,
            undecided: None,
            began,
            seen_pod: false,
        };
        (driver, receiver)
    }

    /// Follows the launcher until its end is certain and its network is gone.
    pub async fn run(mut self) {
        let Outside { sockets, host, .. } = self.agent.outside.clone();
        loop {
            match Conversation::open(&*sockets, &self.agent.pods.socket(&self.pod_uid)).await {
                Ok((conversation, events, hello)) => {
                    let conversation = Arc::new(conversation);
                    tracing::info!(id = %conversation.id(), "launcher connected");
                    self.converse(&conversation, events, &hello).await;
                    self.agent.disconnect(&self.pod_uid);
                    tracing::info!(id = %conversation.id(), "launcher disconnected");
                }
                Err(TalkError::Connect(_)) => {}
                Err(error) => tracing::warn!(pod = self.pod_uid, error = %chain(&error), "launcher"),
            }
            if let Some(end) = self.certain_end() {
                self.finish(end).await;
                return;
            }
            let known = !self.facts.borrow().id.instance_uid.is_empty();
            let look = if known { Look::End(&self.pod_uid) } else { Look::Launcher(&self.pod_uid) };
            host.look_again(look).await;
        }
    }

    /// The end of the launcher, once it is certain.
    fn certain_end(&mut self) -> Option<End> {
        let pods = &self.agent.pods;
        let pod = self.agent.cluster.pods.get(&self.pod_uid);
        self.seen_pod |= pod.is_some();
        let on_disk = match pods.on_disk(&self.pod_uid) {
            Ok(on_disk) => on_disk,
            Err(error) => {
                tracing::error!(pod = self.pod_uid, %error, "the launcher's records cannot be read");
                return None;
            }
        };
        let complete = self.agent.cluster.pods.is_complete();
        let gone = complete && pod.is_none() && (self.seen_pod || self.began.elapsed() > UNKNOWN_POD);
        let over = gone || pod.as_deref().is_some_and(is_final);
        let ended = pods.has_ended(&self.pod_uid, on_disk.as_ref());
        if !(ended || over && pods.is_gone(&self.pod_uid)) {
            return None;
        }
        let on_disk = on_disk.unwrap_or_default();
        let said = self.facts.borrow().state.exit.clone();
        let record = on_disk.exit.or(said);
        let ran = on_disk.started || self.facts.borrow().state.vm != VmState::Empty;
        let unrecorded = || if gone { End::removed() } else { End::unrecorded(ran) };
        let end = record.as_ref().map_or_else(unrecorded, End::recorded);
        Some(self.given_up.clone().unwrap_or(end))
    }

    async fn finish(&mut self, end: End) {
        self.outgoing = None;
        self.learn_identity();
        if self.facts.borrow().id.instance_uid.is_empty() {
            // It never spoke to this agent and left no record: only its pod tells whom it served.
            self.agent.cluster.ready().await;
            self.learn_identity();
        }
        let end = self.settled(end).await;
        tracing::info!(id = %self.facts.borrow().id, ?end, "launcher ended");
        self.facts.send_modify(|facts| {
            facts.state.vm = VmState::Ended;
            facts.end = Some(end);
        });
        let id = self.facts.borrow().id.clone();
        while let Err(error) = self.agent.network.unplug(&id.instance_uid, &id.pod_uid).await {
            tracing::warn!(%id, error = %chain(&error), "the VM's network is not gone yet; trying again");
            tokio::time::sleep(TICK).await;
        }
    }

    /// The end, once it is known what the launcher's records of a move mean for it.
    async fn settled(&self, end: End) -> End {
        let on_disk = self.agent.pods.on_disk(&self.pod_uid).ok().flatten().unwrap_or_default();
        if let Some(uid) = on_disk.continuing {
            // The guest continued here, whether or not this agent heard of it: the flip is due, and
            // what happened afterwards is this launcher's end.
            self.facts.send_if_modified(|facts| resumed(facts, &uid));
            return end;
        }
        let Some(uid) = on_disk.gave_up.filter(|_| end.cause.is_some()) else { return end };
        if holdfast_env::mutant!("dead-source-is-an-end") {
            return end;
        }
        // The guest may run at the target: an end reported now could start a second one (INV-1).
        self.agent.cluster.ready().await;
        let id = self.facts.borrow().id.clone();
        match crate::migration::settle_dead_source(&self.agent, &id, &uid).await {
            Verdict::Continued => {
                let detail = "the guest runs on the target of the move".to_owned();
                End { cause: None, detail, inferred: false }
            }
            Verdict::NeverContinued => end,
        }
    }

    /// Whom a launcher served that never connected to this agent: its record or its pod tells.
    fn learn_identity(&self) {
        let known = !self.facts.borrow().id.instance_uid.is_empty();
        let on_disk = self.agent.pods.on_disk(&self.pod_uid).ok().flatten();
        // The launcher writes its records: it may say whom it served, but not that it is another pod.
        let recorded = on_disk
            .and_then(|records| records.exit.map(|exit| exit.id).or(records.served))
            .map(|id| Id { pod_uid: self.pod_uid.clone(), ..id });
        let pod = self.agent.cluster.pods.get(&self.pod_uid);
        if !known && let Some(id) = recorded.or_else(|| pod.as_deref().and_then(id_of_pod)) {
            self.facts.send_modify(|facts| facts.id = id);
        }
        if let Some(pod) = &pod {
            self.facts.send_if_modified(|facts| {
                let name = pod.name_any();
                let changed = facts.pod_name != name;
                facts.pod_name = name;
                changed
            });
        }
    }

    async fn converse(
        &mut self,
        conversation: &Arc<Conversation>,
        mut events: mpsc::Receiver<Event>,
        hello: &Hello,
    ) {
        let Some(first) = events.recv().await else { return };
        self.facts.send_modify(|facts| {
            facts.id = conversation.id().clone();
            facts.qemu_version.clone_from(&hello.qemu_version);
        });
        self.learn_identity();
        self.take_in(first, conversation);
        let mut asked = Asked::default();
        let mut changes = self.agent.cluster.changes();
        let mut retry = Retry::default();
        let mut last_wait = "";
        loop {
            while let Ok(event) = events.try_recv() {
                self.take_in(event, conversation);
            }
            let (id, vm) = {
                let facts = self.facts.borrow();
                (facts.id.clone(), facts.state.vm)
            };
            super::adoption::adopt(&self.agent, &id, vm).await;
            changes.mark_unchanged();
            if self.facts.borrow().pod_name.is_empty() {
                self.learn_identity();
            }
            let step = self.decide(conversation.id(), &asked);
            if let Step::Wait(why) = step {
                if why != last_wait {
                    tracing::debug!(id = %conversation.id(), why, "waiting");
                    last_wait = why;
                }
            } else if retry.is_due() && self.is_worth_a_try(&step) {
                match self.act(&step, conversation, hello, &mut asked).await {
                    Ok(()) => {
                        retry = Retry::default();
                        if !matches!(step, Step::Settle(_)) {
                            continue;
                        }
                    }
                    Err(error) => self.failed(&step, &error, &mut retry),
                }
            }
            // A retry that is due but has nothing to try must not keep this loop spinning.
            let now = Instant::now();
            let wake = retry.at.filter(|at| *at > now).unwrap_or(now + TICK);
            tokio::select! {
                biased;
                event = events.recv() => match event {
                    Some(event) => self.take_in(event, conversation),
                    None => return,
                },
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    fn decide(&self, id: &Id, asked: &Asked) -> Step {
        let instance = self.agent.instance(id);
        let migration = instance.as_deref().and_then(|i| self.agent.named_migration(i));
        if self.given_up.is_some() {
            return if asked.kill { Step::Wait("it is being ended") } else { Step::Kill(StopWhy::Power) };
        }
        plan(&Observed {
            id,
            state: &self.facts.borrow().state,
            instance: instance.as_deref(),
            migration: migration.as_deref(),
            asked,
        })
    }

    /// An undecided hand-over is looked into once a second, not with every event.
    fn is_worth_a_try(&mut self, step: &Step) -> bool {
        if !matches!(step, Step::Settle(_)) {
            self.undecided = None;
            return true;
        }
        let now = Instant::now();
        let at = *self.undecided.get_or_insert(now + crate::migration::SETTLE_EVERY);
        if at > now {
            return false;
        }
        self.undecided = Some(now + crate::migration::SETTLE_EVERY);
        true
    }

    fn take_in(&self, event: Event, conversation: &Arc<Conversation>) {
        self.facts.send_modify(|facts| {
            if let Some(broken) = self.outgoing.as_ref().and_then(Outgoing::broken) {
                facts.broken = Some(broken);
            }
            match event {
                Event::State(state) => facts.state = state,
                Event::Migration(migration) => facts.state.migration = Some(migration),
                Event::Guest(guest) => facts.state.guest = Some(guest),
                Event::Ended(record) => {
                    facts.state.vm = VmState::Ended;
                    facts.state.exit = Some(record);
                }
            }
        });
        let facts = self.facts.borrow();
        self.agent.connect(Connected {
            id: facts.id.clone(),
            conversation: conversation.clone(),
            state: facts.state.clone(),
            run: self.agent.pods.run(&self.pod_uid),
        });
    }

    async fn act(
        &mut self,
        step: &Step,
        conversation: &Arc<Conversation>,
        hello: &Hello,
        asked: &mut Asked,
    ) -> Result<(), StepError> {
        tracing::info!(id = %conversation.id(), ?step, "launcher");
        let facts = self.facts.borrow().clone();
        let start = Start {
            agent: &self.agent,
            conversation,
            facts: &facts,
            qemu_version: &hello.qemu_version,
            pid: conversation.pid(),
        };
        match step {
            Step::Wait(_) => {}
            Step::Prepare => {
                start.prepare().await?;
                self.prepared(conversation);
            }
            Step::Run => start.run().await?,
            Step::PrepareIncoming(uid) => {
                let migration = self.agent.cluster.migrations.get(uid);
                let migration =
                    migration.ok_or_else(|| StepError::NotYet("the Migration is gone".to_owned()))?;
                start.prepare_incoming(&migration).await?;
                self.prepared(conversation);
            }
            Step::MigrateIn(uid) => {
                let request = Request::MigrateIn { migration_uid: uid.clone() };
                conversation.order(request, None, PROMPT).await?;
                asked.migrate_in = Some(uid.clone());
            }
            Step::Stop { grace_s, why } => {
                conversation.order(Request::Stop { grace_s: *grace_s, why: *why }, None, PROMPT).await?;
                asked.stop = true;
            }
            Step::Kill(why) => {
                conversation.order(Request::Kill { why: *why }, None, PROMPT).await?;
                asked.kill = true;
            }
            Step::Cancel(uid, why) => {
                let request = Request::Cancel { migration_uid: uid.clone(), why: (*why).to_owned() };
                asked.cancel = Some(uid.clone());
                conversation.order(request, None, PROMPT).await?;
            }
            Step::MigrateOut(_) | Step::Switch(_) | Step::RoutesBack(_) | Step::Settle(_) => {
                self.source_step(step, conversation, asked).await?;
            }
        }
        Ok(())
    }

    /// Steps of the source of a move; see [`crate::migration`].
    async fn source_step(
        &mut self,
        step: &Step,
        conversation: &Conversation,
        asked: &mut Asked,
    ) -> Result<(), StepError> {
        let id = conversation.id();
        match step {
            Step::MigrateOut(uid) => {
                let outgoing = Outgoing::begin(self.agent.clone(), id, uid).await?;
                let config = outgoing.config();
                self.outgoing = Some(outgoing);
                asked.migrate_out = Some(uid.clone());
                let request = Request::MigrateOut { migration_uid: uid.clone(), config };
                conversation.order(request, None, PROMPT).await?;
            }
            Step::Switch(uid) => {
                let stopped_at_us =
                    self.facts.borrow().state.migration.as_ref().and_then(|m| m.stopped_at_us);
                let routes_done = match &mut self.outgoing {
                    Some(outgoing) if outgoing.uid() == uid => outgoing.routes_to_target(stopped_at_us).await,
                    _ => false,
                };
                let request = Request::Switch { migration_uid: uid.clone(), routes_done };
                asked.switch = Some(uid.clone());
                conversation.order(request, None, PROMPT).await?;
            }
            Step::RoutesBack(uid) => {
                asked.routes_back = Some(uid.clone());
                if let Some(outgoing) = &mut self.outgoing {
                    outgoing.keep_packets();
                }
                crate::migration::routes_back(&self.agent, id).await;
                self.outgoing = None;
            }
            Step::Settle(uid) => {
                if self.outgoing.as_ref().is_none_or(|outgoing| outgoing.uid() != uid) {
                    // The agent was restarted: the launcher needs its way to the target again.
                    self.outgoing = Some(Outgoing::begin(self.agent.clone(), id, uid).await?);
                }
                if let Some(verdict) = crate::migration::verdict(&self.agent, id, uid).await {
                    let request = Request::Settle { migration_uid: uid.clone(), verdict };
                    conversation.order(request, None, PROMPT).await?;
                }
            }
            Step::Wait(_)
            | Step::Prepare
            | Step::Run
            | Step::PrepareIncoming(_)
            | Step::MigrateIn(_)
            | Step::Cancel(..)
            | Step::Stop { .. }
            | Step::Kill(_) => {}
        }
        Ok(())
    }

    /// QEMU has the disks now: what the guest sees of them.
    fn prepared(&self, conversation: &Conversation) {
        let Some(instance) = self.agent.instance(conversation.id()) else { return };
        let stored =
            instance.status.as_ref().and_then(|s| s.runtime.as_ref()).and_then(|r| r.definition.clone());
        let Some(Ok(definition)) = stored.map(serde_json::from_value) else { return };
        let pid = conversation.pid();
        let size = |disk: &str| {
            let path = self.agent.outside.host.disk_image(&self.pod_uid, pid, disk);
            let length = path.and_then(|path| std::fs::metadata(path).ok()).map_or(0, |m| m.len());
            i64::try_from(length).unwrap_or(i64::MAX)
        };
        let volumes = report::volumes(&definition, size);
        self.facts.send_modify(|facts| facts.volumes = volumes);
    }

    fn failed(&mut self, step: &Step, error: &StepError, retry: &mut Retry) {
        retry.again();
        let id = self.facts.borrow().id.clone();
        tracing::warn!(%id, ?step, error = %chain(error), "not done");
        let starting = matches!(step, Step::Prepare | Step::PrepareIncoming(_));
        let hopeless = match error {
            StepError::Unbuildable(_) => true,
            StepError::Talk(TalkError::Refused(_)) | StepError::Seed(PeerError::Refused { .. }) => {
                starting && retry.count >= REFUSALS
            }
            _ => false,
        };
        if hopeless && starting {
            self.facts.send_modify(|facts| facts.hopeless = Some(chain(error)));
            let cause = Some(ExitCause::StartFailed);
            self.given_up = Some(End { cause, detail: chain(error), inferred: false });
            *retry = Retry::default();
        }
    }
}

/// Notes that the guest of a move runs (or ran) here; true when that was news.
fn resumed(facts: &mut Facts, uid: &str) -> bool {
    let known = facts.state.migration.as_ref();
    if known.is_some_and(|m| m.migration_uid == uid && m.stage == MoveStage::Resumed) {
        return false;
    }
    facts.state.migration = Some(MigrationEvent::new(uid, MoveStage::Resumed));
    true
}

/// Nothing of the pod runs, and nothing of it will be started.
pub fn is_final(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn id_of_pod(pod: &Pod) -> Option<Id> {
    use holdfast_api::names::label;
    let labels = pod.labels();
    Some(Id {
        instance_uid: labels.get(label::CREATED_BY)?.clone(),
        epoch: labels.get(label::EPOCH)?.parse().ok()?,
        pod_uid: pod.uid()?,
    })
}
