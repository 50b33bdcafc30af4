//! Assembly of a control plane: the store, what shall exist in it, and the shell that answers requests.
//! No sockets, no files: [`crate::server`] adds those, [`crate::inprocess`] talks to it directly.

use crate::auth::{self, Tokens};
use crate::core::{Core, Parts};
use crate::http::{App, Authenticator, Documents};
use crate::server::{Error, Hooks};
use crate::store::{HistoryLimits, Journal, Writing};
use holdfast_apimachinery::status::Status;
use holdfast_env::{Clock, Entropy};
use holdfast_metrics::Metrics;
use serde_json::Value;
use std::sync::Arc;

/// What a control plane shall hold from its first moment on.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// CustomResourceDefinitions (as JSON) that shall exist as given.
    pub crds: Vec<Value>,
    /// Namespaces that shall exist beside the default ones.
    pub namespaces: Vec<String>,
    /// Objects created where missing, in order: group, plural, namespace, object.
    pub objects: Vec<(String, String, String, Value)>,
}

/// What a control plane is made of.
pub struct PlaneParts {
    /// Where writes become durable.
    pub journal: Box<dyn Journal>,
    /// By whom.
    pub writing: Writing,
    /// How much watch history stays in memory.
    pub history: HistoryLimits,
    /// What shall exist.
    pub contents: Contents,
    /// What other parts of the platform plug in.
    pub hooks: Hooks,
    /// Source of timestamps.
    pub clock: Clock,
    /// Source of uids and generated names.
    pub entropy: Entropy,
    /// Signs and checks service-account tokens; without it there are none.
    pub tokens: Option<Tokens>,
    /// `host:port` clients reach the server at, empty if they do not come over a network.
    pub advertised: String,
}

impl PlaneParts {
    /// A control plane without threads, tokens and hooks, on the clock and randomness given.
    pub fn inline(journal: Box<dyn Journal>, contents: Contents, clock: Clock, entropy: Entropy) -> Self {
        Self {
            journal,
            writing: Writing::Inline,
            history: HistoryLimits::default(),
            contents,
            hooks: Hooks::default(),
            clock,
            entropy,
            tokens: None,
            advertised: String::new(),
        }
    }
}

/// Opens the store, ensures what shall exist, and gives back the control plane, ready to answer. What it
/// wrote may not be durable yet: see [`Core::durability`].
///
/// # Errors
/// The journal cannot be read, or an object that shall exist is refused.
pub fn open(parts: PlaneParts) -> Result<Arc<App>, Error> {
    let PlaneParts { journal, writing, history, contents, hooks, clock, entropy, tokens, advertised } = parts;
    let admission = hooks.admission;
    let core = Arc::new(Core::open(Parts { journal, writing, admission, clock, entropy, history })?);
    ensure(&core, &contents)?;
    Ok(Arc::new(App {
        core,
        authenticator: Authenticator { tokens },
        aggregated: hooks.aggregated,
        logs: hooks.logs,
        advertised,
        documents: Documents::default(),
        metrics: Metrics::default(),
    }))
}

fn ensure(core: &Core, contents: &Contents) -> Result<(), Error> {
    let fault = |what: String| move |status: Status| Error::Ensure { what, why: status.message };
    auth::defaults(core).map_err(fault("default objects".into()))?;
    auth::ensure_namespaces(core, contents.namespaces.iter().map(String::as_str))
        .map_err(fault("namespaces".into()))?;
    for crd in &contents.crds {
        let name = crd["metadata"]["name"].as_str().unwrap_or("").to_owned();
        auth::ensure_definition(core, crd).map_err(fault(format!("definition {name}")))?;
    }
    for (group, plural, namespace, object) in &contents.objects {
        let name = object["metadata"]["name"].as_str().unwrap_or("");
        auth::ensure(core, group, plural, namespace, object.clone())
            .map_err(fault(format!("{plural} {name}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::UserInfo;
    use crate::inprocess;
    use crate::store::SharedJournal;
    use futures::StreamExt;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};
    use serde_json::json;

    fn plane(journal: &SharedJournal, seed: u64) -> Arc<App> {
        let (contents, entropy) = (Contents::default(), Entropy::seeded(seed));
        open(PlaneParts::inline(Box::new(journal.clone()), contents, Clock::Real, entropy)).unwrap()
    }

    fn maps(app: &Arc<App>) -> Api<ConfigMap> {
        Api::default_namespaced(inprocess::client(app, UserInfo::kubelith()))
    }

    async fn create(maps: &Api<ConfigMap>, name: &str) -> kube::Result<ConfigMap> {
        let map = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        maps.create(&PostParams::default(), &map).await
    }

    // KS 6 and 8.4: objects, revisions and the watch history outlive the process.
    #[tokio::test(start_paused = true)]
    async fn a_plane_on_the_same_journal_goes_on_where_the_last_one_stopped() {
        let journal = SharedJournal::new();
        let first = plane(&journal, 1);
        let maps_before = maps(&first);
        let a = create(&maps_before, "a").await.unwrap();
        create(&maps_before, "b").await.unwrap();
        let list = maps_before.list(&ListParams::default()).await.unwrap();
        let written = journal.len();

        let second = plane(&journal, 2);
        assert_eq!(journal.len(), written, "a settled journal is not written to at start");
        let maps_after = maps(&second);
        assert_eq!(maps_after.list(&ListParams::default()).await.unwrap().items, list.items);
        let since = a.metadata.resource_version.clone().unwrap();
        let mut watch = maps_after.watch(&WatchParams::default(), &since).await.unwrap().boxed();
        create(&maps_after, "c").await.unwrap();
        for name in ["b", "c"] {
            match watch.next().await {
                Some(Ok(WatchEvent::Added(map))) => assert_eq!(map.metadata.name.as_deref(), Some(name)),
                other => panic!("{other:?}"),
            }
        }
        // The old process lives on somewhere: its writes must fail, not diverge.
        assert!(create(&maps_before, "d").await.is_err());

        assert_eq!(journal.drop_last(1), 1);
        let third = plane(&journal, 3);
        let names: Vec<_> = maps(&third).list(&ListParams::default()).await.unwrap().items;
        let names: Vec<_> = names.into_iter().filter_map(|map| map.metadata.name).collect();
        assert_eq!(names, ["a", "b"], "a torn write is not there");
        create(&maps(&third), "c").await.unwrap();
    }
}
