//! Everything under way between processes. Nothing arrives unless the simulation picks it.
//!
//! A message belongs to a channel; messages of one channel arrive in order, channels are independent
//! of each other. A message that is dropped instead of delivered closes what its sender waits for, as
//! a broken connection would.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::sockets::Link;
use crate::world::World;

/// Number of a process; never used twice in one history.
pub type ProcessId = u64;
/// Number of a channel; never used twice in one history.
pub type ChannelId = u64;

/// Where something runs: a node's name, [`PLANE`] or [`USERS`].
pub type Place = Arc<str>;

/// The machine of the control plane.
pub const PLANE: &str = "plane";
/// Where users sit.
pub const USERS: &str = "users";

/// A process at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// Where.
    pub place: Place,
    /// Which.
    pub process: ProcessId,
}

/// What happens on arrival.
pub type Arrival = Box<dyn FnOnce(&mut World) + Send>;

/// What kind of thing is under way: the simulation treats them differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A request to the API server.
    Request,
    /// Its answer.
    Reply,
    /// A piece of a watch.
    Watch,
    /// Bytes or frames between agents, launchers and the gateway.
    Stream,
    /// News of a machine to the processes on it: an exit, a signal.
    Local,
}

/// Something under way.
pub struct Message {
    /// Kind.
    pub kind: Kind,
    /// Whence.
    pub from: Place,
    /// Whither; the process is run after the arrival. 0: the API server, whichever process it is then.
    pub to: Party,
    /// What a person reads in the trace.
    pub what: String,
    /// When it was sent.
    pub sent: Duration,
    /// Makes it arrive.
    pub arrive: Arrival,
}

/// About so many connections are noted before those that are gone are forgotten.
const LINKS: usize = 64;

#[derive(Default)]
struct Inner {
    time: Duration,
    channels: BTreeMap<ChannelId, VecDeque<Message>>,
    /// Channels that have something under way, in no meaningful order.
    waiting: Vec<ChannelId>,
    last_channel: ChannelId,
    /// Directed: nothing gets from the first place to the second.
    cut: BTreeSet<(Place, Place)>,
    sent: u64,
    /// Connections between processes that are open, as far as known.
    links: Vec<Link>,
}

/// The network, shared by all processes.
#[derive(Clone, Default)]
pub struct Net(Arc<Mutex<Inner>>);

impl Net {
    /// A new channel.
    #[must_use]
    pub fn channel(&self) -> ChannelId {
        let mut inner = self.0.lock();
        inner.last_channel += 1;
        inner.last_channel
    }

    /// Sends on a channel.
    pub fn send(
        &self,
        channel: ChannelId,
        kind: Kind,
        from: &Place,
        to: &Party,
        what: String,
        arrive: impl FnOnce(&mut World) + Send + 'static,
    ) {
        let mut inner = self.0.lock();
        let arrive = Box::new(arrive);
        let message = Message { kind, from: from.clone(), to: to.clone(), what, sent: inner.time, arrive };
        inner.sent += 1;
        let queue = inner.channels.entry(channel).or_default();
        queue.push_back(message);
        if queue.len() == 1 {
            inner.waiting.push(channel);
        }
    }

    /// Sends on a channel of its own.
    pub fn post(
        &self,
        kind: Kind,
        from: &Place,
        to: &Party,
        what: String,
        arrive: impl FnOnce(&mut World) + Send + 'static,
    ) {
        self.send(self.channel(), kind, from, to, what, arrive);
    }

    /// Messages ever sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.0.lock().sent
    }

    /// Number of channels with something under way.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.lock().waiting.len()
    }

    /// Tells the network the time.
    pub fn set_time(&self, time: Duration) {
        self.0.lock().time = time;
    }

    /// Takes the first message of the `nth` waiting channel, if `may` allows it.
    pub fn take(&self, nth: usize, may: impl FnOnce(&Message) -> bool) -> Option<Message> {
        let mut inner = self.0.lock();
        let inner = &mut *inner;
        let channel = *inner.waiting.get(nth)?;
        let queue = inner.channels.get_mut(&channel)?;
        let head = queue.front()?;
        if inner.cut.contains(&(head.from.clone(), head.to.place.clone())) || !may(head) {
            return None;
        }
        let message = queue.pop_front();
        if queue.is_empty() {
            inner.channels.remove(&channel);
            inner.waiting.swap_remove(nth);
        }
        message
    }

    /// Cuts one direction between two places, or opens it again.
    pub fn set_cut(&self, from: &Place, to: &Place, cut: bool) {
        let link = (from.clone(), to.clone());
        let mut inner = self.0.lock();
        if cut {
            inner.cut.insert(link);
        } else {
            inner.cut.remove(&link);
        }
    }

    /// Whether nothing gets from one place to another.
    #[must_use]
    pub fn is_cut(&self, from: &Place, to: &Place) -> bool {
        self.0.lock().cut.contains(&(from.clone(), to.clone()))
    }

    /// Whether any link is cut.
    #[must_use]
    pub fn any_cut(&self) -> bool {
        !self.0.lock().cut.is_empty()
    }

    /// Notes a connection.
    pub(crate) fn link(&self, link: Link) {
        let mut inner = self.0.lock();
        if inner.links.len() >= 2 * LINKS {
            inner.links.retain(Link::is_open);
        }
        inner.links.push(link);
    }

    /// The ends of all open connections between processes.
    #[must_use]
    pub fn links(&self) -> Vec<(ProcessId, ProcessId)> {
        let mut inner = self.0.lock();
        inner.links.retain(Link::is_open);
        inner.links.iter().map(Link::ends).collect()
    }

    /// Breaks connections while both of their ends live, with all that is under way on them. Returns how many.
    pub fn sever(&self, matches: impl Fn(&Link) -> bool) -> usize {
        let mut broken = Vec::new();
        let mut lost = Vec::new();
        {
            let mut inner = self.0.lock();
            let inner = &mut *inner;
            inner.links.retain(Link::is_open);
            broken.extend(inner.links.extract_if(.., |link| matches(link)));
            for channel in broken.iter().flat_map(|link| [link.channels.0, link.channels.1]) {
                lost.extend(inner.channels.remove(&channel));
            }
            let channels = &inner.channels;
            inner.waiting.retain(|channel| channels.contains_key(channel));
        }
        // Outside the lock: what is dropped may send something.
        broken.iter().for_each(Link::break_it);
        drop(lost);
        broken.len()
    }

    /// Drops what matches: connections that break. Whole channels go, because what follows on a broken
    /// connection never arrives. Returns how many messages were lost.
    pub fn lose(&self, is_lost: impl Fn(&Message) -> bool) -> usize {
        let mut lost = Vec::new();
        {
            let mut inner = self.0.lock();
            let inner = &mut *inner;
            inner.channels.retain(|_, queue| {
                if !queue.iter().any(&is_lost) {
                    return true;
                }
                lost.extend(queue.drain(..));
                false
            });
            let channels = &inner.channels;
            inner.waiting.retain(|channel| channels.contains_key(channel));
        }
        // Dropped outside the lock: closing a connection may send something.
        lost.len()
    }
}
