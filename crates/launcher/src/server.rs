//! The socket on which agents talk to the launcher: frames in, frames out, nothing decided here.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use holdfast_wire::launcher::{Body, Event, FromLauncher, ToLauncher};
use holdfast_wire::local::FrameListener;
use holdfast_wire::unix::Conn;
use holdfast_wire::{Id, VERSION};
use tokio::sync::mpsc;

/// Frames that may wait for a slow agent before it is disconnected; it learns the state when it returns.
const BACKLOG_FRAMES: usize = 256;

/// What the server tells the driver.
#[derive(Debug)]
pub enum Arrival {
    /// A connection was opened.
    Opened(u64, mpsc::Sender<Outgoing>),
    /// A request arrived on a connection.
    Request(u64, ToLauncher, Vec<OwnedFd>),
    /// A connection ended.
    Closed(u64),
}

/// A frame to send.
#[derive(Debug)]
pub struct Outgoing {
    /// The frame.
    pub message: FromLauncher,
    /// Descriptors that travel with it.
    pub fds: Vec<OwnedFd>,
}

/// Accepts connections for ever.
pub async fn serve<T: From<Arrival> + Send + 'static>(
    mut listener: Box<dyn FrameListener>,
    inbox: mpsc::UnboundedSender<T>,
) {
    let mut number = 0;
    loop {
        let conn = match listener.accept().await {
            Ok(conn) => conn,
            Err(e) => {
                tracing::error!("accepting an agent's connection: {e}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        number += 1;
        let (frames, outgoing) = mpsc::channel(BACKLOG_FRAMES);
        if inbox.send(Arrival::Opened(number, frames).into()).is_err() {
            return;
        }
        let inbox = inbox.clone();
        tokio::spawn(async move {
            // When either side ends, both do: an agent that does not read is disconnected by the driver.
            tokio::select! {
                biased;
                () = write(&conn, outgoing) => {}
                () = read(&conn, number, &inbox) => {}
            }
            let _ = inbox.send(Arrival::Closed(number).into());
        });
    }
}

async fn write(conn: &Conn, mut outgoing: mpsc::Receiver<Outgoing>) {
    while let Some(frame) = outgoing.recv().await {
        let fds: Vec<_> = frame.fds.iter().map(AsFd::as_fd).collect();
        if let Err(e) = conn.send(&frame.message, &fds).await {
            tracing::debug!("sending to the agent: {e}");
            return;
        }
    }
}

async fn read<T: From<Arrival>>(conn: &Conn, number: u64, inbox: &mpsc::UnboundedSender<T>) {
    loop {
        match conn.receive(|m: &ToLauncher| m.fds).await {
            Ok(Some((message, fds))) => {
                let _ = inbox.send(Arrival::Request(number, message, fds).into());
            }
            Ok(None) => return,
            Err(e) => {
                tracing::warn!("reading from the agent: {e}");
                return;
            }
        }
    }
}

/// The open connections.
#[derive(Debug)]
pub struct Agents {
    id: Id,
    open: BTreeMap<u64, mpsc::Sender<Outgoing>>,
}

impl Agents {
    /// No connection yet; frames will bear `id`.
    pub fn new(id: Id) -> Agents {
        Agents { id, open: BTreeMap::new() }
    }

    /// Adds a connection.
    pub fn add(&mut self, number: u64, frames: mpsc::Sender<Outgoing>) {
        self.open.insert(number, frames);
    }

    /// Forgets a connection.
    pub fn remove(&mut self, number: u64) {
        self.open.remove(&number);
    }

    /// Sends to one connection.
    pub fn send(&mut self, number: u64, body: Body, fds: Vec<OwnedFd>) {
        let message = FromLauncher { v: VERSION, id: self.id.clone(), body, fds: fds.len() };
        let Some(frames) = self.open.get(&number) else { return };
        if frames.try_send(Outgoing { message, fds }).is_err() {
            tracing::warn!("the agent does not read; its connection is dropped");
            self.open.remove(&number);
        }
    }

    /// Sends an event to every connection.
    pub fn tell(&mut self, event: &Event) {
        let numbers: Vec<u64> = self.open.keys().copied().collect();
        for number in numbers {
            self.send(number, Body::Event(event.clone()), vec![]);
        }
    }

    /// Waits until everything was handed to the sockets, at most `limit`.
    pub async fn drain(&mut self, limit: std::time::Duration) {
        let all = async {
            for frames in self.open.values() {
                // All permits free: the writer took every frame.
                let _ = frames.reserve_many(BACKLOG_FRAMES).await;
            }
            // The writer took the last frame; one more turn lets it reach the socket.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        let _ = tokio::time::timeout(limit, all).await;
    }
}
