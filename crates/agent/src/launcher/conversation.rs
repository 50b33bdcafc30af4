//! One connection to one launcher: requests with their answers, and the launcher's own events.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_wire::launcher::{Answer, Body, Event, FromLauncher, Request, ToLauncher};
use holdfast_wire::local::{BoxStream, LocalSockets};
use holdfast_wire::unix::Conn;
use holdfast_wire::{Id, OLDEST, VERSION};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

/// Talking to a launcher failed.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    /// Nobody listens, or the connection broke.
    #[error("the connection to the launcher is gone")]
    Gone,
    /// Its socket cannot be reached.
    #[error("the launcher's socket cannot be reached")]
    Connect(#[source] std::io::Error),
    /// A frame could not be sent or read.
    #[error("the launcher's socket")]
    Frame(#[from] holdfast_wire::frame::Error),
    /// It said no.
    #[error("the launcher refused: {0}")]
    Refused(String),
    /// No answer within the time.
    #[error("the launcher did not answer within {0:?}")]
    Late(Duration),
    /// It speaks no common version, or answered what was not asked.
    #[error("the launcher answered out of turn: {0}")]
    Nonsense(String),
}

/// An answer with the descriptors that came along.
pub type Answered = (Answer, Vec<OwnedFd>);

type Waiting = Arc<Mutex<Option<BTreeMap<u64, oneshot::Sender<Answered>>>>>;

/// A connection to a launcher. Dropping it closes the connection.
#[derive(Debug)]
pub struct Conversation {
    conn: Arc<Conn>,
    waiting: Waiting,
    next: AtomicU64,
    id: Id,
    /// Version agreed on: the launcher may be of an older build.
    version: u32,
    reader: tokio::task::AbortHandle,
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Events that may wait while a request is under way; a launcher that sends more is cut off.
const EVENTS: usize = 1024;
/// Longest wait for an answer that involves no start of QEMU.
pub const PROMPT: Duration = Duration::from_secs(10);
/// Longest wait for QEMU to be ready: firmware, memory and disk locks on a busy machine.
pub const PREPARE: Duration = Duration::from_secs(120);

impl Conversation {
    /// Connects, learns from the first event whom the launcher serves, and agrees on a version.
    /// Returns the events as they come; the channel closes with the connection.
    ///
    /// # Errors
    /// Nobody listens at the socket, or what listens does not talk like a launcher.
    pub async fn open(
        sockets: &dyn LocalSockets,
        socket: &Path,
    ) -> Result<(Self, mpsc::Receiver<Event>, Hello), TalkError> {
        let conn = Arc::new(sockets.connect_frames(socket).await.map_err(TalkError::Connect)?);
        let first =
            tokio::time::timeout(PROMPT, receive(&conn)).await.map_err(|_| TalkError::Late(PROMPT))?;
        let (first, _) = first?.ok_or(TalkError::Gone)?;
        let waiting: Waiting = Arc::new(Mutex::new(Some(BTreeMap::new())));
        let (events, receiver) = mpsc::channel(EVENTS);
        let id = first.id.clone();
        let reader = tokio::spawn(read(conn.clone(), waiting.clone(), events, first)).abort_handle();
        let next = AtomicU64::new(1);
        let mut conversation = Self { conn, waiting, next, id, version: OLDEST, reader };
        let (version, hello) = conversation.hello().await?;
        conversation.version = version;
        Ok((conversation, receiver, hello))
    }

    /// Whom the launcher serves.
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// Process id of the launcher in this PID namespace, as far as the kernel knows it.
    pub fn pid(&self) -> Option<u32> {
        self.conn.peer_pid()
    }

    async fn hello(&self) -> Result<(u32, Hello), TalkError> {
        let versions = (OLDEST..=VERSION).rev().collect();
        match self.ask(Request::Hello { versions }, &[], PROMPT).await? {
            (Answer::Hello { version, qemu_version }, _) if (OLDEST..=VERSION).contains(&version) => {
                Ok((version, Hello { qemu_version }))
            }
            (other, _) => Err(TalkError::Nonsense(format!("{other:?} to Hello"))),
        }
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// The launcher refuses, is gone, or does not answer within `limit`.
    pub async fn ask(
        &self,
        request: Request,
        fds: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Answered, TalkError> {
        if request.since() > self.version {
            let why = "it is of an older build that does not know this yet; a restart or a move of the VM brings it \
                       up to date";
            return Err(TalkError::Refused(why.to_owned()));
        }
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match self.waiting.lock().as_mut() {
            Some(waiting) => waiting.insert(seq, sender),
            None => return Err(TalkError::Gone),
        };
        let frame = ToLauncher { v: request.since(), seq, id: self.id.clone(), request, fds: fds.len() };
        self.conn.send(&frame, fds).await?;
        let answer = tokio::time::timeout(limit, receiver).await;
        if let Some(waiting) = self.waiting.lock().as_mut() {
            waiting.remove(&seq);
        }
        match answer {
            Err(_) => Err(TalkError::Late(limit)),
            Ok(Err(_)) => Err(TalkError::Gone),
            Ok(Ok((Answer::Refused { why }, _))) => Err(TalkError::Refused(why)),
            Ok(Ok(answered)) => Ok(answered),
        }
    }

    /// Asks for something that is simply done.
    ///
    /// # Errors
    /// As [`Self::ask`]; an answer other than Done is nonsense.
    pub async fn order(
        &self,
        request: Request,
        tap: Option<&OwnedFd>,
        limit: Duration,
    ) -> Result<(), TalkError> {
        let fds: Vec<BorrowedFd<'_>> = tap.iter().map(|fd| fd.as_fd()).collect();
        match self.ask(request, &fds, limit).await? {
            (Answer::Done, _) => Ok(()),
            (other, _) => Err(TalkError::Nonsense(format!("{other:?}"))),
        }
    }

    /// Opens a byte stream to the guest.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn open_stream(
        &self,
        sockets: &dyn LocalSockets,
        kind: holdfast_wire::launcher::StreamKind,
    ) -> Result<BoxStream, TalkError> {
        match self.ask(Request::OpenStream(kind), &[], PROMPT).await? {
            (Answer::Stream, mut fds) if fds.len() == 1 => {
                sockets.adopt(fds.remove(0)).map_err(TalkError::Connect)
            }
            (other, fds) => Err(TalkError::Nonsense(format!("{other:?} with {} descriptors", fds.len()))),
        }
    }
}

/// What a launcher said about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Version of QEMU it would start.
    pub qemu_version: String,
}

async fn receive(conn: &Conn) -> Result<Option<(FromLauncher, Vec<OwnedFd>)>, TalkError> {
    Ok(conn.receive(|message: &FromLauncher| message.fds).await?)
}

async fn read(conn: Arc<Conn>, waiting: Waiting, events: mpsc::Sender<Event>, first: FromLauncher) {
    let id = first.id.clone();
    let mut next = Some((first, vec![]));
    loop {
        let (message, fds) = match next.take() {
            Some(message) => message,
            None => match receive(&conn).await {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%id, %error, "the connection to a launcher ended");
                    break;
                }
            },
        };
        if message.id != id {
            tracing::error!(%id, got = %message.id, "a launcher changed its identity; closing the connection");
            break;
        }
        match message.body {
            Body::Answer { seq, answer } => {
                let waiter = waiting.lock().as_mut().and_then(|waiting| waiting.remove(&seq));
                // Nobody waits any more when the answer is late; repeating the request is harmless.
                if let Some(waiter) = waiter {
                    let _ = waiter.send((answer, fds));
                }
            }
            Body::Event(event) => {
                // Never waits: an answer somebody needs may be right behind.
                if let Err(error) = events.try_send(event) {
                    tracing::debug!(%id, %error, "events of a launcher are not taken; closing");
                    break;
                }
            }
        }
    }
    waiting.lock().take();
}

#[cfg(test)]
mod tests {
    use holdfast_wire::launcher::State;
    use holdfast_wire::local::Unix;

    use super::*;

    /// A launcher of the first release: it hangs up on what it does not know, so that must not reach it.
    #[tokio::test]
    async fn an_older_launcher_is_spared_what_it_does_not_know() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("launcher.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let launcher = tokio::spawn(async move {
            let conn = Conn::new(listener.accept().await.unwrap().0);
            let say = async |body| {
                let frame = FromLauncher { v: 1, id: Id::default(), body, fds: 0 };
                conn.send(&frame, &[]).await.unwrap();
            };
            say(Body::Event(Event::State(State::default()))).await;
            let mut heard = vec![];
            while let Ok(Some((ToLauncher { v, seq, request, .. }, _))) =
                conn.receive(|message: &ToLauncher| message.fds).await
            {
                let answer = match &request {
                    Request::Hello { .. } => Answer::Hello { version: 1, qemu_version: "7.2.0".into() },
                    _ => Answer::Done,
                };
                heard.push((v, format!("{request:?}")));
                say(Body::Answer { seq, answer }).await;
            }
            heard
        });
        let (conversation, _events, _) = Conversation::open(&Unix, &socket).await.unwrap();
        let refused = conversation.ask(Request::Seed, &[], PROMPT).await.unwrap_err();
        assert!(refused.to_string().contains("older build"), "{refused}");
        conversation.order(Request::Run, None, PROMPT).await.unwrap();
        drop(conversation);
        let heard = launcher.await.unwrap();
        let [(1, hello), (1, run)] = &heard[..] else { panic!("{heard:?}") };
        assert!(hello.starts_with("Hello") && run == "Run", "{heard:?}");
    }
}
