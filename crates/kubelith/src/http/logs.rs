//! `pods/{name}/log` (KS 15.1): the checks here, the text from whoever runs the pod.

use super::body::{self, Answer, BoxError};
use super::info::ResourceRequest;
use super::query::Query;
use super::router::App;
use crate::core::{Core, Filter, ReadVersion};
use crate::registry::Served;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use holdfast_apimachinery::status::Status;
use serde_json::Value;
use std::sync::Arc;

/// What of a container's log is wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogOptions {
    /// Container; one of the pod's.
    pub container: String,
    /// Go on until the container ends.
    pub follow: bool,
    /// Log of the container's previous run.
    pub previous: bool,
    /// Only lines since this instant.
    pub since: Option<DateTime<Utc>>,
    /// Prefix each line with its time.
    pub timestamps: bool,
    /// Only the last lines.
    pub tail_lines: Option<u64>,
    /// Stop after this many bytes.
    pub limit_bytes: Option<u64>,
}

/// Pieces of a log.
pub type LogStream = BoxStream<'static, Result<Bytes, BoxError>>;

/// A request for a log.
pub struct LogRequest {
    /// The pod, which has been scheduled.
    pub pod: Value,
    /// What is wanted.
    pub options: LogOptions,
    /// Resolves when the container has ended or the pod is gone: a follower then sends the rest and ends.
    pub ended: BoxFuture<'static, ()>,
}

/// Gives the logs of running and finished containers.
pub trait LogSource: Send + Sync {
    /// Opens the log of a container.
    fn open(&self, request: LogRequest) -> BoxFuture<'static, Result<LogStream, Status>>;
}

pub(super) async fn answer(
    app: &App,
    served: &Arc<Served>,
    resource: &ResourceRequest,
    query: &Query,
) -> Result<Answer, Status> {
    let name = resource.name.as_deref().unwrap_or("");
    let namespace = resource.namespace.as_deref().unwrap_or("");
    let pod = app.core.get(served, namespace, name, ReadVersion::Latest)?.value();
    let container = container(&pod, name, query.get("container"))?;
    if pod["spec"]["nodeName"].as_str().unwrap_or("").is_empty() {
        return Ok(body::answer(204, "text/plain", body::full("")));
    }
    check_started(&pod, name, &container, query.flag("previous"))?;
    let Some(source) = &app.logs else {
        return Err(Status::internal("this control plane was started without a source of pod logs"));
    };
    let options = options(app, container, query)?;
    let ended = ended(app.core.clone(), served.clone(), &pod, options.container.clone());
    let stream = source.open(LogRequest { pod, options, ended }).await?;
    Ok(body::answer(200, "text/plain", body::streamed(stream)))
}

fn options(app: &App, container: String, query: &Query) -> Result<LogOptions, Status> {
    let count = |key: &str| -> Result<Option<u64>, Status> {
        let number = query.number(key)?;
        number
            .map(|n| {
                u64::try_from(n)
                    .map_err(|_| Status::bad_request(format!("{key}: must be greater than or equal to 0")))
            })
            .transpose()
    };
    let since_seconds = query
        .number("sinceSeconds")?
        .map(|s| app.core.now() - chrono::TimeDelta::try_seconds(s).unwrap_or_default());
    let since_time = query
        .get("sinceTime")
        .map(|t| DateTime::parse_from_rfc3339(t).map_err(|e| Status::bad_request(format!("sinceTime: {e}"))))
        .transpose()?
        .map(|t| t.with_timezone(&Utc));
    Ok(LogOptions {
        container,
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        since: since_seconds.or(since_time),
        timestamps: query.flag("timestamps"),
        tail_lines: count("tailLines")?,
        limit_bytes: count("limitBytes")?,
    })
}

/// Resolves when the container of this very pod has ended or the pod is gone.
fn ended(core: Arc<Core>, served: Arc<Served>, pod: &Value, container: String) -> BoxFuture<'static, ()> {
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or("").to_owned();
    let (namespace, name, uid) = (text("namespace"), text("name"), text("uid"));
    Box::pin(async move {
        let filter = Filter {
            served: served.clone(),
            namespace: Some(namespace.clone()),
            labels: Default::default(),
            fields: Default::default(),
        };
        let mut changed = core.watch(&filter, None).changed;
        loop {
            let found =
                core.get(&served, &namespace, &name, ReadVersion::Latest).ok().filter(|pod| *pod.uid == *uid);
            let running = found.is_some_and(|pod| {
                let pod = pod.value();
                let statuses =
                    ["containerStatuses", "initContainerStatuses"].map(|list| pod["status"][list].clone());
                statuses
                    .iter()
                    .filter_map(Value::as_array)
                    .flatten()
                    .any(|s| s["name"] == container && s["state"]["running"].is_object())
            });
            if !running || changed.changed().await.is_err() {
                return;
            }
        }
    })
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
}

fn container(pod: &Value, name: &str, wanted: Option<&str>) -> Result<String, Status> {
    let containers = names(&pod["spec"]["containers"]);
    match (wanted, containers.as_slice()) {
        (Some(wanted), _)
            if containers.contains(&wanted) || names(&pod["spec"]["initContainers"]).contains(&wanted) =>
        {
            Ok(wanted.to_owned())
        }
        (Some(wanted), _) => {
            Err(Status::bad_request(format!("container {wanted} is not valid for pod {name}")))
        }
        (None, [only]) => Ok((*only).to_owned()),
        (None, several) => Err(Status::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            several.join(" ")
        ))),
    }
}

fn check_started(pod: &Value, name: &str, container: &str, previous: bool) -> Result<(), Status> {
    let status = ["containerStatuses", "initContainerStatuses"]
        .iter()
        .filter_map(|list| pod["status"][*list].as_array())
        .flatten()
        .find(|s| s["name"] == container);
    if previous && status.is_none_or(|s| !s["lastState"]["terminated"].is_object()) {
        return Err(Status::bad_request(format!(
            "previous terminated container \"{container}\" in pod \"{name}\" not found"
        )));
    }
    let state = status.map(|s| &s["state"]);
    let started = state.is_some_and(|s| s["running"].is_object() || s["terminated"].is_object())
        || status.is_some_and(|s| s["lastState"]["terminated"].is_object());
    if started {
        return Ok(());
    }
    let reason = state.and_then(|s| s["waiting"]["reason"].as_str()).unwrap_or("ContainerCreating");
    Err(Status::bad_request(format!(
        "container \"{container}\" in pod \"{name}\" is waiting to start: {reason}"
    )))
}
