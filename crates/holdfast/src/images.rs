//! Serves the files of `$HOLDFAST_HOME/images` to importers at `http://169.254.1.2/`, reachable from
//! this home's nodes only: the socket is bound to the home's bridge, so every home has its own.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures::TryStreamExt as _;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::network::IMAGE_SERVER;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Serves until the process ends; a bridge that is not there (yet) is waited for.
///
/// # Errors
/// Never returns one at present: what fails is tried again.
pub async fn serve(dir: PathBuf, bridge: String) -> anyhow::Result<()> {
    let listener = loop {
        match listen(&bridge) {
            Ok(listener) => break listener,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "image server");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    };
    let dir = Arc::new(dir);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let dir = Arc::clone(&dir);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let dir = Arc::clone(&dir);
                async move { Ok::<_, Infallible>(answer(&dir, request).await) }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
        });
    }
}

fn listen(bridge: &str) -> anyhow::Result<tokio::net::TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(bridge.as_bytes())).with_context(|| format!("bind to {bridge}"))?;
    let address: SocketAddr = (IMAGE_SERVER, 80).into();
    socket.bind(&address.into()).with_context(|| format!("listen at {IMAGE_SERVER} on {bridge}"))?;
    socket.listen(64)?;
    socket.set_nonblocking(true)?;
    Ok(tokio::net::TcpListener::from_std(socket.into())?)
}

async fn answer(dir: &Path, request: Request<Incoming>) -> Response<Body> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
    }
    let Some(path) = file_path(dir, request.uri().path()) else {
        return text(StatusCode::NOT_FOUND, "no such file\n");
    };
    let range = request.headers().get(RANGE).and_then(|value| value.to_str().ok());
    match file(&path, range, *request.method() == Method::HEAD).await {
        Ok(response) => response,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            text(StatusCode::NOT_FOUND, "no such file\n")
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
    }
}

/// A plain file name directly in the directory; nothing else is served.
fn file_path(dir: &Path, path: &str) -> Option<PathBuf> {
    let name = path.strip_prefix('/')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
    (!name.is_empty() && !name.starts_with('.') && name.chars().all(plain)).then(|| dir.join(name))
}

async fn file(path: &Path, range: Option<&str>, head: bool) -> std::io::Result<Response<Body>> {
    let mut file = tokio::fs::File::open(path).await?;
    let metadata = file.metadata().await?;
    if !metadata.is_file() {
        return Ok(text(StatusCode::NOT_FOUND, "no such file\n"));
    }
    let size = metadata.len();
    let (status, start, end) = match range.map(|range| parse_range(range, size)) {
        None | Some(Range::Whole) => (StatusCode::OK, 0, size),
        Some(Range::Part(start, end)) => (StatusCode::PARTIAL_CONTENT, start, end),
        Some(Range::Unsatisfiable) => {
            let mut response = text(StatusCode::RANGE_NOT_SATISFIABLE, "");
            set(&mut response, CONTENT_RANGE, format!("bytes */{size}"));
            return Ok(response);
        }
    };
    file.seek(std::io::SeekFrom::Start(start)).await?;
    let body = if head {
        empty()
    } else {
        let stream = ReaderStream::with_capacity(file.take(end - start), 64 * 1024);
        StreamBody::new(stream.map_ok(Frame::data)).boxed_unsync()
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    set(&mut response, ACCEPT_RANGES, "bytes".to_owned());
    set(&mut response, CONTENT_LENGTH, (end - start).to_string());
    if status == StatusCode::PARTIAL_CONTENT {
        set(&mut response, CONTENT_RANGE, format!("bytes {start}-{}/{size}", end - 1));
    }
    Ok(response)
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    /// Not a range we know: the whole file, as HTTP allows.
    Whole,
    /// From, to (exclusive).
    Part(u64, u64),
    Unsatisfiable,
}

fn parse_range(text: &str, size: u64) -> Range {
    let Some((from, to)) = text.strip_prefix("bytes=").and_then(|rest| rest.split_once('-')) else {
        return Range::Whole;
    };
    match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(from), _) if from >= size => Range::Unsatisfiable,
        (Ok(from), Ok(to)) if to >= from => Range::Part(from, to.saturating_add(1).min(size)),
        (Ok(from), Err(_)) if to.is_empty() => Range::Part(from, size),
        (Err(_), Ok(last)) if from.is_empty() && last > 0 && size > 0 => {
            Range::Part(size.saturating_sub(last), size)
        }
        _ => Range::Whole,
    }
}

fn set(response: &mut Response<Body>, name: http::HeaderName, value: String) {
    if let Ok(value) = value.parse() {
        response.headers_mut().insert(name, value);
    }
}

fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync()
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes()));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}

/// The server's address as users write it in a data source.
#[must_use]
pub fn url(file: &str) -> String {
    let address: Ipv4Addr = IMAGE_SERVER;
    format!("http://{address}/{file}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_served() {
        let dir = Path::new("/d");
        assert_eq!(file_path(dir, "/demo.qcow2"), Some(PathBuf::from("/d/demo.qcow2")));
        for path in ["/", "/../x", "/a/b", "/.hidden", "x", "/a%2fb"] {
            assert_eq!(file_path(dir, path), None, "{path}");
        }
    }

    #[test]
    fn ranges() {
        for (text, want) in [
            ("bytes=0-3", Range::Part(0, 4)),
            ("bytes=4-", Range::Part(4, 10)),
            ("bytes=8-99", Range::Part(8, 10)),
            ("bytes=-3", Range::Part(7, 10)),
            ("bytes=10-", Range::Unsatisfiable),
            ("bytes=5-3", Range::Whole),
            ("lines=1-2", Range::Whole),
        ] {
            assert_eq!(parse_range(text, 10), want, "{text}");
        }
    }

    #[tokio::test]
    async fn a_file_is_served_whole_and_in_part() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"0123456789").unwrap();
        let whole = file(&path, None, false).await.unwrap();
        assert_eq!(whole.headers()[CONTENT_LENGTH], "10");
        assert_eq!(whole.into_body().collect().await.unwrap().to_bytes(), "0123456789");
        let part = file(&path, Some("bytes=2-4"), false).await.unwrap();
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(part.headers()[CONTENT_RANGE], "bytes 2-4/10");
        assert_eq!(part.into_body().collect().await.unwrap().to_bytes(), "234");
    }
}
