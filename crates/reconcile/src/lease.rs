//! Leadership: one process at a time runs the controllers, by a Lease.
//!
//! The holder renews every third of the duration and stops **before** its lease can be taken: a
//! leader that could not renew for two thirds of the duration gives up by itself.

use std::time::Duration;

use holdfast_env::{Clock, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use tracing::{info, warn};

/// Which Lease, who asks for it, and for how long it holds without renewal.
#[derive(Clone, Debug)]
pub struct LeaderConfig {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Who we are. A process that takes the same identity as its dead predecessor (and is sure
    /// that it is dead) continues at once.
    pub identity: String,
    /// How long a lease holds without renewal.
    pub duration: Duration,
}

/// Takes part in the election for one Lease.
#[derive(Clone, Debug)]
pub struct Leader {
    api: Api<Lease>,
    config: LeaderConfig,
    clock: Clock,
}

/// What a candidate does about the Lease it sees.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Create(Box<LeaseSpec>),
    Take(Box<LeaseSpec>),
    WaitUntil(Timestamp),
}

fn decide(lease: Option<&LeaseSpec>, seen_at: Timestamp, now: Timestamp, config: &LeaderConfig) -> Step {
    let seconds = i32::try_from(config.duration.as_secs().max(1)).unwrap_or(i32::MAX);
    let mut mine = LeaseSpec {
        holder_identity: Some(config.identity.clone()),
        lease_duration_seconds: Some(seconds),
        renew_time: Some(MicroTime(now)),
        acquire_time: Some(MicroTime(now)),
        lease_transitions: Some(0),
        ..LeaseSpec::default()
    };
    let Some(lease) = lease else { return Step::Create(Box::new(mine)) };
    let holder = lease.holder_identity.as_deref().unwrap_or_default();
    mine.lease_transitions = lease.lease_transitions;
    if holder == config.identity {
        mine.acquire_time = lease.acquire_time.clone().or(mine.acquire_time);
        return Step::Take(Box::new(mine));
    }
    // Counted from when we first saw this renewal, by our own clock: clocks of holders may be off.
    let held = i64::from(lease.lease_duration_seconds.unwrap_or(seconds));
    let expires = seen_at.checked_add(jiff::SignedDuration::from_secs(held)).unwrap_or(Timestamp::MAX);
    if holder.is_empty() || now >= expires {
        mine.lease_transitions = Some(lease.lease_transitions.unwrap_or_default() + 1);
        return Step::Take(Box::new(mine));
    }
    Step::WaitUntil(expires)
}

impl Leader {
    /// A candidate.
    #[must_use]
    pub fn new(client: kube::Client, config: LeaderConfig, clock: Clock) -> Self {
        Self { api: Api::namespaced(client, &config.namespace), config, clock }
    }

    fn pause(&self) -> Duration {
        (self.config.duration / 3).max(Duration::from_millis(100))
    }

    /// Returns when this process is the leader.
    pub async fn acquire(&self) {
        let mut seen: Option<(Option<LeaseSpec>, Timestamp)> = None;
        loop {
            let wait = match self.attempt(&mut seen).await {
                Ok(None) => {
                    info!(lease = self.config.name, identity = self.config.identity, "leading");
                    return;
                }
                Ok(Some(until)) => Duration::try_from(until.duration_since(self.clock.now()))
                    .unwrap_or_default()
                    .min(self.pause()),
                Err(error) => {
                    warn!(%error, lease = self.config.name, "cannot take the leader lease yet");
                    self.pause().min(Duration::from_secs(1))
                }
            };
            tokio::time::sleep(wait.max(Duration::from_millis(20))).await;
        }
    }

    /// One attempt to take or renew; `None` if we hold the lease now.
    async fn attempt(
        &self,
        seen: &mut Option<(Option<LeaseSpec>, Timestamp)>,
    ) -> kube::Result<Option<Timestamp>> {
        let found = self.api.get_opt(&self.config.name).await?;
        let spec = found.as_ref().and_then(|lease| lease.spec.clone());
        let now = self.clock.now();
        let seen_at = match seen {
            Some((known, at)) if *known == spec => *at,
            _ => {
                *seen = Some((spec.clone(), now));
                now
            }
        };
        let absent = found.is_none();
        let lease_spec = if absent { None } else { Some(spec.unwrap_or_default()) };
        match decide(lease_spec.as_ref(), seen_at, now, &self.config) {
            Step::WaitUntil(at) => return Ok(Some(at)),
            Step::Create(spec) => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(self.config.name.clone()),
                        namespace: Some(self.config.namespace.clone()),
                        ..ObjectMeta::default()
                    },
                    spec: Some(*spec),
                };
                self.api.create(&PostParams::default(), &lease).await?;
            }
            Step::Take(spec) => {
                let mut lease = found.unwrap_or_default();
                lease.spec = Some(*spec);
                // The version read guards: of two candidates one gets 409.
                self.api.replace(&self.config.name, &PostParams::default(), &lease).await?;
            }
        }
        Ok(None)
    }

    /// Renews until that fails for two thirds of the duration or another holds the lease; then
    /// returns why. The caller must stop acting before it does anything else.
    pub async fn hold(&self) -> String {
        let limit = self.config.duration * 2 / 3;
        let mut renewed = tokio::time::Instant::now();
        let mut seen = None;
        loop {
            tokio::time::sleep(self.pause().min(limit)).await;
            let left = (renewed + limit).saturating_duration_since(tokio::time::Instant::now());
            let sent = tokio::time::Instant::now();
            match tokio::time::timeout(left.max(Duration::from_millis(50)), self.attempt(&mut seen)).await {
                Ok(Ok(None)) => renewed = sent,
                Ok(Ok(Some(_))) => {
                    return format!("lease {} is held by another process now", self.config.name);
                }
                Ok(Err(error)) => warn!(%error, "cannot renew the leader lease"),
                Err(_) => warn!("renewing the leader lease takes too long"),
            }
            if renewed.elapsed() >= limit {
                return format!("lease {} could not be renewed for {} s", self.config.name, limit.as_secs());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn config() -> LeaderConfig {
        LeaderConfig {
            namespace: "ns".into(),
            name: "controller".into(),
            identity: "me".into(),
            duration: Duration::from_secs(15),
        }
    }

    fn held_by(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_taken_when_free_ours_or_expired_and_waited_for_otherwise() {
        assert!(matches!(decide(None, at(0), at(0), &config()), Step::Create(_)));
        assert!(matches!(decide(Some(&held_by("me")), at(0), at(1), &config()), Step::Take(_)));
        assert!(matches!(decide(Some(&held_by("")), at(0), at(1), &config()), Step::Take(_)));
        assert_eq!(decide(Some(&held_by("other")), at(0), at(14), &config()), Step::WaitUntil(at(15)));
        match decide(Some(&held_by("other")), at(0), at(15), &config()) {
            Step::Take(spec) => assert_eq!(spec.lease_transitions, Some(4)),
            other => panic!("{other:?}"),
        }
    }
}
