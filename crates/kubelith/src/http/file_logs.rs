//! Pod logs from plain files, one a container, as the node runtime writes them.

use super::body::BoxError;
use super::logs::{LogOptions, LogRequest, LogSource, LogStream};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use holdfast_apimachinery::status::Status;
use serde_json::Value;
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;

/// How often a followed file is looked at.
const POLL: Duration = Duration::from_millis(200);
/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// Where a container's log lies: pod, container, whether the previous run's is meant. `None` if this
/// machine does not run the pod.
pub type Locate = dyn Fn(&Value, &str, bool) -> Option<PathBuf> + Send + Sync;

/// A [`LogSource`] over files without times: requests that need the time of a line are refused.
pub struct FileLogs {
    locate: Box<Locate>,
}

impl FileLogs {
    /// With the rule that finds a file.
    pub fn new(locate: impl Fn(&Value, &str, bool) -> Option<PathBuf> + Send + Sync + 'static) -> Self {
        Self { locate: Box::new(locate) }
    }
}

impl LogSource for FileLogs {
    fn open(&self, request: LogRequest) -> BoxFuture<'static, Result<LogStream, Status>> {
        let LogRequest { pod, options, ended } = request;
        let path = (self.locate)(&pod, &options.container, options.previous);
        Box::pin(async move {
            if options.timestamps || options.since.is_some() {
                return Err(Status::bad_request(
                    "the node runtime keeps no times of log lines: leave out timestamps, sinceSeconds and sinceTime",
                ));
            }
            let name = pod["metadata"]["name"].as_str().unwrap_or("").to_owned();
            let path = path.ok_or_else(|| {
                Status::internal(&format!("no node of this control plane keeps the log of pod \"{name}\""))
            })?;
            let mut file = File::open(&path).await.map_err(|e| fault(&path, &e))?;
            if let Some(lines) = options.tail_lines {
                seek_to_tail(&mut file, lines).await.map_err(|e| fault(&path, &e))?;
            }
            let (sender, pieces) = mpsc::channel(4);
            tokio::spawn(pump(file, options, ended, sender));
            let stream =
                futures::stream::unfold(
                    pieces,
                    |mut pieces| async move { Some((pieces.recv().await?, pieces)) },
                );
            Ok(stream.boxed() as LogStream)
        })
    }
}

fn fault(path: &Path, error: &std::io::Error) -> Status {
    Status::internal(&format!("log file {}: {error}", path.display()))
}

/// Moves to the start of the last `lines` lines.
async fn seek_to_tail(file: &mut File, lines: u64) -> std::io::Result<()> {
    let end = file.seek(SeekFrom::End(0)).await?;
    if lines == 0 {
        return Ok(());
    }
    let (mut start, mut wanted, mut buffer) = (end, lines, vec![0; CHUNK]);
    while start > 0 {
        let from = start.saturating_sub(CHUNK as u64);
        let length = usize::try_from(start - from).unwrap_or(CHUNK);
        file.seek(SeekFrom::Start(from)).await?;
        file.read_exact(&mut buffer[..length]).await?;
        for i in (0..length).rev() {
            let position = from + i as u64;
            // The newline that ends the last line starts no further one.
            if buffer[i] != b'\n' || position + 1 == end {
                continue;
            }
            wanted = wanted.saturating_sub(1);
            if wanted == 0 {
                return file.seek(SeekFrom::Start(position + 1)).await.map(drop);
            }
        }
        start = from;
    }
    file.seek(SeekFrom::Start(0)).await.map(drop)
}

async fn pump(
    mut file: File,
    options: LogOptions,
    ended: BoxFuture<'static, ()>,
    sender: mpsc::Sender<Result<Bytes, BoxError>>,
) {
    let mut left = options.limit_bytes.unwrap_or(u64::MAX);
    let mut ended = Box::pin(ended);
    let mut over = !options.follow;
    loop {
        match copy(&mut file, &mut left, &sender).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                // The reader may be gone already.
                let _ = sender.send(Err(error.into())).await;
                return;
            }
        }
        if over {
            return;
        }
        tokio::select! {
            biased;
            () = sender.closed() => return,
            // Once more, for what the container wrote last.
            () = &mut ended => over = true,
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

/// Sends what the file holds beyond the present position; `false` when nothing more is wanted.
async fn copy(
    file: &mut File,
    left: &mut u64,
    sender: &mpsc::Sender<Result<Bytes, BoxError>>,
) -> std::io::Result<bool> {
    loop {
        let mut buffer = vec![0; CHUNK.min(usize::try_from(*left).unwrap_or(CHUNK))];
        if buffer.is_empty() {
            return Ok(false);
        }
        let read = file.read(&mut buffer).await?;
        if read == 0 {
            return Ok(true);
        }
        *left -= read as u64;
        buffer.truncate(read);
        if sender.send(Ok(buffer.into())).await.is_err() {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    async fn read(text: &str, options: LogOptions) -> Result<String, Status> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.log");
        std::fs::write(&path, text).unwrap();
        let logs = FileLogs::new(move |_, _, _| Some(path.clone()));
        let pod = json!({"metadata": {"name": "p"}});
        let stream = logs.open(LogRequest { pod, options, ended: Box::pin(async {}) }).await?;
        let pieces: Vec<Bytes> = stream.map(|piece| piece.unwrap()).collect().await;
        Ok(String::from_utf8(pieces.concat()).unwrap())
    }

    // KS-A80
    #[tokio::test]
    async fn tail_limit_and_follow() {
        let options = LogOptions::default();
        let tail = |n| LogOptions { tail_lines: Some(n), ..LogOptions::default() };
        assert_eq!(read("a\nb\nc\n", options.clone()).await.unwrap(), "a\nb\nc\n");
        assert_eq!(read("a\nb\nc\n", tail(2)).await.unwrap(), "b\nc\n");
        assert_eq!(read("a\nb\nc", tail(1)).await.unwrap(), "c");
        assert_eq!(read("a\nb\n", tail(9)).await.unwrap(), "a\nb\n");
        assert_eq!(read("a\nb\n", tail(0)).await.unwrap(), "");
        let long = "x".repeat(CHUNK) + "\nlast\n";
        assert_eq!(read(&long, tail(1)).await.unwrap(), "last\n");
        assert_eq!(
            read("abcdef", LogOptions { limit_bytes: Some(3), ..LogOptions::default() }).await.unwrap(),
            "abc"
        );
        assert_eq!(read("a\n", LogOptions { follow: true, ..LogOptions::default() }).await.unwrap(), "a\n");
        assert_eq!(
            read("a\n", LogOptions { timestamps: true, ..LogOptions::default() }).await.unwrap_err().code,
            400
        );
    }
}
