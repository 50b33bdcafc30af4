//! The control stream of a move: COMMIT one way, ACK or NACK the other (spec
//! migration-and-maintenance.md §2.4). It runs through both agents, never through the API server.

use std::io;
use std::path::Path;

use holdfast_wire::frame;
use holdfast_wire::launcher::Control;
use holdfast_wire::local::{BoxStream, LocalSockets, StreamListener};
use tokio::io::WriteHalf;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// What arrives at the source.
#[derive(Debug)]
pub enum FromTarget {
    /// A word of the target, on the connection with this number.
    Said(u64, Control),
    /// The connection with this number broke.
    Closed(u64),
}

/// The source's end.
pub struct ToTarget {
    number: u64,
    write: WriteHalf<BoxStream>,
    reader: AbortHandle,
}

impl Drop for ToTarget {
    fn drop(&mut self) {
        // The stream closes with its last half.
        self.reader.abort();
    }
}

impl ToTarget {
    /// Connects to the socket on which the source's agent listens. `number` marks what arrives.
    pub async fn connect<T: From<FromTarget> + Send + 'static>(
        sockets: &dyn LocalSockets,
        socket: &Path,
        number: u64,
        inbox: mpsc::UnboundedSender<T>,
    ) -> io::Result<ToTarget> {
        let (mut read, write) = tokio::io::split(sockets.connect(socket).await?);
        let reader = tokio::spawn(async move {
            while let Ok(Some(word)) = frame::read::<Control>(&mut read).await {
                let _ = inbox.send(FromTarget::Said(number, word).into());
            }
            let _ = inbox.send(FromTarget::Closed(number).into());
        });
        Ok(ToTarget { number, write, reader: reader.abort_handle() })
    }

    /// The number given at connect.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Sends one word.
    pub async fn send(&mut self, word: &Control) -> Result<(), frame::Error> {
        frame::write(&mut self.write, word).await
    }
}

/// A word that arrived at the target, and where the answer goes.
#[derive(Debug)]
pub struct FromSource {
    /// The word.
    pub word: Control,
    /// Answers are sent here; it may be gone.
    pub reply: mpsc::UnboundedSender<Control>,
}

/// Target: accepts control connections on `listener` until the inbox is gone. The agent may connect
/// several times, so each connection is served by itself.
pub async fn listen<T: From<FromSource> + Send + 'static>(
    mut listener: Box<dyn StreamListener>,
    inbox: mpsc::UnboundedSender<T>,
) {
    while let Ok(stream) = listener.accept().await {
        let inbox = inbox.clone();
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(stream);
            let (reply, mut answers) = mpsc::unbounded_channel::<Control>();
            let writer = tokio::spawn(async move {
                while let Some(answer) = answers.recv().await {
                    if frame::write(&mut write, &answer).await.is_err() {
                        return;
                    }
                }
            });
            while let Ok(Some(word)) = frame::read::<Control>(&mut read).await {
                if inbox.send(FromSource { word, reply: reply.clone() }.into()).is_err() {
                    return;
                }
            }
            drop(reply);
            let _ = writer.await;
        });
    }
}
