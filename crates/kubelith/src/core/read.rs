//! Get and list: versions, selectors, pages (KS 7).

use super::Core;
use crate::registry::Served;
use crate::store::{Key, Object, TooOld};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use holdfast_apimachinery::{
    selector::{FieldSelector, LabelSelector},
    status::Status,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Which state a read wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadVersion {
    /// The newest.
    #[default]
    Latest,
    /// Any that is at least this new.
    AtLeast(u64),
    /// Exactly this one.
    Exact(u64),
}

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Namespace, all when `None`.
    pub namespace: Option<String>,
    /// Label selector.
    pub labels: LabelSelector,
    /// Field selector; its labels have been checked against the kind.
    pub fields: FieldSelector,
    /// Most objects of this page; 0 means all.
    pub limit: usize,
    /// Token of the page before.
    pub continue_token: Option<String>,
    /// Which state.
    pub version: ReadVersion,
}

/// A page of a list.
#[derive(Debug)]
pub struct ListResult {
    /// Objects in list order.
    pub items: Vec<Arc<Object>>,
    /// Revision of the whole list.
    pub rev: u64,
    /// Token of the next page.
    pub continue_token: Option<String>,
    /// Objects after this page, where known.
    pub remaining: Option<usize>,
}

#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    rv: i64,
    start: String,
}

impl ListOptions {
    /// Whether the selectors choose the object.
    pub fn selects(&self, served: &Served, object: &Object) -> bool {
        selects(served, &self.labels, &self.fields, object)
    }

    fn is_unselective(&self) -> bool {
        self.labels.is_empty() && self.fields.requirements.is_empty()
    }
}

/// Whether both selectors choose the object; parses it only if a field is asked for that is not at hand.
pub(super) fn selects(
    served: &Served,
    labels: &LabelSelector,
    fields: &FieldSelector,
    object: &Object,
) -> bool {
    if !labels.is_empty() && !labels.matches(&object.labels) {
        return false;
    }
    let mut other_fields = false;
    for requirement in &fields.requirements {
        let value = match requirement.field.as_str() {
            "metadata.name" => &*object.key.name,
            "metadata.namespace" => &*object.key.namespace,
            "spec.nodeName" if served.is("", "pods") => object.node.as_deref().unwrap_or_default(),
            _ => {
                other_fields = true;
                continue;
            }
        };
        if (value == requirement.value) != requirement.equals {
            return false;
        }
    }
    !other_fields || fields.matches(&served.kind, &served.read(object))
}

impl Core {
    /// Revision of the newest change to a storage name in this process; 0 if there was none.
    pub fn last_rev(&self, storage: &str) -> u64 {
        self.state.read().collection(storage).map_or(0, |c| c.last_rev())
    }

    /// All objects of a storage name, in stored form.
    pub fn all(&self, storage: &str) -> Vec<Arc<Object>> {
        self.state
            .read()
            .collection(storage)
            .map_or_else(Vec::new, |c| c.range(None, None).cloned().collect())
    }

    /// One object as it is now.
    ///
    /// # Errors
    /// 404; 504 for a version of the future.
    pub fn get(
        &self,
        served: &Served,
        namespace: &str,
        name: &str,
        version: ReadVersion,
    ) -> Result<Arc<Object>, Status> {
        let state = self.state.read();
        check_future(version, state.rev())?;
        state
            .get(&served.storage, &Key::new(namespace, name))
            .cloned()
            .ok_or_else(|| Status::not_found(&served.kind.group_resource(), name))
    }

    /// One page of a list.
    ///
    /// # Errors
    /// 400 for a bad token, 410 for a state that is no longer known, 504 for one of the future.
    pub fn list(&self, served: &Served, options: &ListOptions) -> Result<ListResult, Status> {
        let state = self.state.read();
        let current = state.rev();
        check_future(options.version, current)?;
        let (rev, after) = match &options.continue_token {
            Some(token) => read_token(token, options.namespace.as_deref())?,
            None => match options.version {
                ReadVersion::Exact(rev) => (Some(rev), None),
                ReadVersion::Latest | ReadVersion::AtLeast(_) => (None, None),
            },
        };
        let Some(collection) = state.collection(&served.storage) else {
            return Ok(ListResult {
                items: Vec::new(),
                rev: rev.unwrap_or(current),
                continue_token: None,
                remaining: None,
            });
        };
        let namespace = options.namespace.as_deref();
        let old;
        let (rev, objects): (u64, Box<dyn Iterator<Item = &Arc<Object>>>) = match rev {
            Some(rev) if rev < collection.last_rev() => {
                old = collection.at(rev).map_err(|TooOld { .. }| expired(options, after.as_ref()))?;
                (rev, Box::new(crate::store::range(&old, namespace, after.as_ref())))
            }
            pinned => (pinned.unwrap_or(current), Box::new(collection.range(namespace, after.as_ref()))),
        };
        let mut chosen = objects.filter(|object| options.selects(served, object));
        let limit = if options.limit == 0 { usize::MAX } else { options.limit };
        let items: Vec<Arc<Object>> = chosen.by_ref().take(limit).cloned().collect();
        let rest = chosen.next().map(|_| if options.is_unselective() { 1 + chosen.count() } else { 0 });
        let continue_token = rest.and(items.last()).map(|last| write_token(rev, last, namespace.is_some()));
        Ok(ListResult { items, rev, continue_token, remaining: rest.filter(|n| *n > 0) })
    }
}

fn check_future(version: ReadVersion, current: u64) -> Result<(), Status> {
    match version {
        ReadVersion::AtLeast(rev) | ReadVersion::Exact(rev) if rev > current => {
            Err(Status::future_version(rev, current))
        }
        _ => Ok(()),
    }
}

fn expired(options: &ListOptions, after: Option<&Key>) -> Status {
    let fresh = after.map(|key| {
        let start = start_of(key, options.namespace.is_some());
        encode(&Token { v: "meta.k8s.io/v1".into(), rv: -1, start })
    });
    Status::expired(fresh)
}

fn start_of(key: &Key, in_namespace: bool) -> String {
    if in_namespace || key.namespace.is_empty() {
        format!("{}\0", key.name)
    } else {
        format!("{}/{}\0", key.namespace, key.name)
    }
}

fn write_token(rev: u64, last: &Object, in_namespace: bool) -> String {
    encode(&Token {
        v: "meta.k8s.io/v1".into(),
        rv: i64::try_from(rev).unwrap_or(i64::MAX),
        start: start_of(&last.key, in_namespace),
    })
}

fn encode(token: &Token) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(token).expect("invariant: a token always serialises"))
}

/// Revision (`None` = latest) and last key of the page before.
fn read_token(token: &str, namespace: Option<&str>) -> Result<(Option<u64>, Option<Key>), Status> {
    let bad = |why: &str| Status::bad_request(format!("invalid continue token: {why}"));
    let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|_| bad("not base64"))?;
    let token: Token = serde_json::from_slice(&bytes).map_err(|_| bad("not understood"))?;
    if token.v != "meta.k8s.io/v1" {
        return Err(bad(&format!("server does not recognize this encoded version {:?}", token.v)));
    }
    let start = token.start.trim_start_matches('/').trim_end_matches('\0');
    let key = match (namespace, start.split_once('/')) {
        (Some(ns), _) => Key::new(ns, start),
        (None, Some((ns, name))) => Key::new(ns, name),
        (None, None) => Key::new("", start),
    };
    Ok((u64::try_from(token.rv).ok(), Some(key)))
}
