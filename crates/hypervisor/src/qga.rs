//! The guest agent's protocol: one question at a time over the virtio-serial socket.
//!
//! Every session begins with `guest-sync-delimited`, otherwise answers to an earlier client's questions
//! poison it; every read has a time limit, because a dead agent leaves the socket open and silent (spec
//! hypervisor.md §12).

use std::io;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How long the agent may take to answer.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Longest answer accepted, bytes.
const ANSWER_MAX_BYTES: usize = 1 << 20;

/// Marks the begin of a synchronised conversation.
const DELIMITER: u8 = 0xff;

/// Why the agent did not answer a question.
#[derive(Debug, thiserror::Error)]
pub enum QgaError {
    /// The channel broke or the agent is silent: open a new session.
    #[error("guest agent: {0}")]
    Channel(#[from] io::Error),
    /// The agent answered with an error; the session goes on.
    #[error("guest agent refused {command}: {desc}")]
    Refused {
        /// The command.
        command: String,
        /// The agent's text.
        desc: String,
    },
}

/// A synchronised session with the guest's agent.
pub struct GuestAgent<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> GuestAgent<S> {
    /// Synchronises over a stream to the agent. `token` should differ from session to session.
    pub async fn open(stream: S, token: u32) -> Result<GuestAgent<S>, QgaError> {
        let mut agent = GuestAgent { stream, buffer: Vec::new() };
        let request = json!({ "execute": "guest-sync-delimited", "arguments": { "id": token } });
        let mut line = vec![DELIMITER];
        line.extend_from_slice(request.to_string().as_bytes());
        line.push(b'\n');
        agent.within(async |a| a.stream.write_all(&line).await).await?;
        agent.within(async |a| a.skip_past_delimiter().await).await?;
        loop {
            // Answers of the agent to older sessions may follow the delimiter of one of them.
            let answer = agent.within(async |a| a.line().await).await?;
            if answer.get("return").and_then(Value::as_u64) == Some(u64::from(token)) {
                return Ok(agent);
            }
        }
    }

    /// Asks a question without arguments.
    pub async fn ask(&mut self, command: &str) -> Result<Value, QgaError> {
        let line = format!("{}\n", json!({ "execute": command }));
        self.within(async |a| a.stream.write_all(line.as_bytes()).await).await?;
        let mut answer = self.within(async |a| a.line().await).await?;
        match answer.get("error") {
            Some(e) => {
                let desc = e.get("desc").and_then(Value::as_str).unwrap_or_default().to_owned();
                Err(QgaError::Refused { command: command.to_owned(), desc })
            }
            None => Ok(answer.get_mut("return").map(Value::take).unwrap_or(Value::Null)),
        }
    }

    async fn within<T>(
        &mut self,
        step: impl AsyncFnOnce(&mut GuestAgent<S>) -> io::Result<T>,
    ) -> io::Result<T> {
        match tokio::time::timeout(ANSWER_LIMIT, step(self)).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 s")),
        }
    }

    async fn more(&mut self) -> io::Result<()> {
        if self.buffer.len() > ANSWER_MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "answer is longer than 1 MiB"));
        }
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn skip_past_delimiter(&mut self) -> io::Result<()> {
        loop {
            if let Some(at) = self.buffer.iter().rposition(|b| *b == DELIMITER) {
                self.buffer.drain(..=at);
                return Ok(());
            }
            self.buffer.clear();
            self.more().await?;
        }
    }

    async fn line(&mut self) -> io::Result<Value> {
        loop {
            if let Some(at) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=at).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            self.more().await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::{UnixListener, UnixStream};

    use super::*;

    #[tokio::test]
    async fn stale_answers_do_not_poison_a_session() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let guest = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            stream.write_all(b"{\"return\": {\"stale\": true}}\n").await.unwrap();
            let mut line = Vec::new();
            stream.read_until(b'\n', &mut line).await.unwrap();
            assert_eq!(line[0], DELIMITER);
            stream.write_all(b"\xff{\"return\": 6}\n\xff{\"return\": 7}\n").await.unwrap();
            line.clear();
            stream.read_until(b'\n', &mut line).await.unwrap();
            stream.write_all(b"{\"return\": {\"version\": \"7.2\"}}\n").await.unwrap();
            line.clear();
            stream.read_until(b'\n', &mut line).await.unwrap();
            stream.write_all(b"{\"error\": {\"desc\": \"no\"}}\n").await.unwrap();
        });
        let stream = UnixStream::connect(&path).await.unwrap();
        let mut agent = GuestAgent::open(stream, 7).await.unwrap();
        assert_eq!(agent.ask("guest-info").await.unwrap()["version"], "7.2");
        assert!(matches!(agent.ask("guest-x").await, Err(QgaError::Refused { .. })));
        guest.await.unwrap();
    }
}
