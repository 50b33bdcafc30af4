//! What is measured: the cost of decisions, who writes what, how much memory the process takes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use holdfast_env::Timestamp;
use holdfast_env::ambient::Ambient;
use holdfast_kubelith::UserInfo;
use holdfast_kubelith::http::App;
use holdfast_kubelith::inprocess;
use http::{Method, Request};
use kube::client::Body;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::random::Dice;
use crate::surroundings;

/// Costs of one kind of work, in microseconds.
pub type Costs = BTreeMap<(String, String), Vec<u32>>;

/// Time and chance of a world in which only work takes real time.
#[derive(Debug)]
pub struct Measured {
    start: Instant,
    began: std::time::Instant,
    dice: RefCell<Dice>,
    costs: RefCell<Costs>,
}

impl Measured {
    /// A world that begins now.
    #[must_use]
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            start: Instant::now(),
            began: std::time::Instant::now(),
            dice: RefCell::new(Dice::new(1, "scale")),
            costs: RefCell::default(),
        })
    }

    /// Takes the costs noted since the last time.
    #[must_use]
    pub fn take_costs(&self) -> Costs {
        std::mem::take(&mut self.costs.borrow_mut())
    }

    /// Time of the world since its beginning, and of the machine.
    #[must_use]
    pub fn times(&self) -> (Duration, Duration) {
        (self.start.elapsed(), self.began.elapsed())
    }
}

impl Ambient for Measured {
    fn now(&self) -> Timestamp {
        surroundings::instant(self.start.elapsed())
    }

    fn random_u64(&self) -> u64 {
        self.dice.borrow_mut().draw()
    }

    fn dies_at(&self, _: &str) -> bool {
        false
    }

    fn mutant(&self, _: &str) -> bool {
        false
    }

    fn stopwatch(&self) -> Duration {
        self.began.elapsed()
    }

    fn note_work(&self, kind: &str, name: &str, took: Duration) {
        let cost = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.costs.borrow_mut().entry((kind.to_owned(), name.to_owned())).or_default().push(cost);
    }
}

/// Value at a share of the sorted costs, in microseconds.
#[must_use]
pub fn at_share(sorted: &[u32], of_thousand: usize) -> u32 {
    let at = (sorted.len() * of_thousand / 1000).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(0)
}

/// Writes to the API: who, and what.
pub type Writes = Arc<Mutex<BTreeMap<(String, String), u64>>>;

/// A client whose writes are counted.
#[must_use]
pub fn client(app: &Arc<App>, user: UserInfo, who: &'static str, writes: &Writes) -> kube::Client {
    let inner = inprocess::Service::new(app.clone(), user);
    kube::Client::new(Counted { inner, who, writes: writes.clone() }, "default")
}

#[derive(Clone)]
struct Counted {
    inner: inprocess::Service,
    who: &'static str,
    writes: Writes,
}

impl tower::Service<Request<Body>> for Counted {
    type Response = <inprocess::Service as tower::Service<Request<Body>>>::Response;
    type Error = <inprocess::Service as tower::Service<Request<Body>>>::Error;
    type Future = <inprocess::Service as tower::Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.method() != Method::GET {
            let what = format!("{} {}", verb(request.method()), resource(request.uri().path()));
            let who = writer(self.who, request.uri().query().unwrap_or(""));
            *self.writes.lock().entry((who, what)).or_default() += 1;
        }
        self.inner.call(request)
    }
}

fn verb(method: &Method) -> &str {
    match method.as_str() {
        "POST" => "create",
        "PUT" => "update",
        "DELETE" => "delete",
        _ => "patch",
    }
}

/// The controller where the client is that of several.
fn writer(who: &str, query: &str) -> String {
    let manager = query.split('&').find_map(|part| part.strip_prefix("fieldManager=holdfast-"));
    manager.map_or_else(|| who.to_owned(), |manager| format!("{who} {manager}"))
}

/// Plural and subresource of a path.
fn resource(path: &str) -> String {
    let mut parts = path.trim_start_matches('/').split('/');
    let skip = if parts.next() == Some("api") { 1 } else { 2 };
    let mut rest: Vec<&str> = parts.skip(skip).collect();
    if rest.first() == Some(&"namespaces") && rest.len() > 2 {
        rest.drain(..2);
    }
    match rest.as_slice() {
        [plural, _, subresource, ..] => format!("{plural}/{subresource}"),
        [plural, ..] => (*plural).to_owned(),
        [] => String::new(),
    }
}

/// Memory that the process holds, in bytes.
#[must_use]
pub fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_named_after_writer_and_kind() {
        assert_eq!(resource("/api/v1/namespaces/default/pods/a/status"), "pods/status");
        assert_eq!(resource("/api/v1/nodes/n1"), "nodes");
        assert_eq!(resource("/apis/x.io/v1/namespaces/default/virtualmachines/a"), "virtualmachines");
        assert_eq!(resource("/apis/x.io/v1/namespaces/default/virtualmachines"), "virtualmachines");
        assert_eq!(writer("controllers", "a=b&fieldManager=holdfast-vmop"), "controllers vmop");
        assert_eq!(writer("loops", ""), "loops");
    }

    #[test]
    fn shares_of_sorted_costs() {
        let costs: Vec<u32> = (1..=1000).collect();
        assert_eq!((at_share(&costs, 500), at_share(&costs, 990), at_share(&[], 500)), (501, 991, 0));
    }
}
