//! The page that Prometheus reads: served by each process that has one, fetched by the API server for
//! users who ask there. HTTP/1.1 by hand, one request a connection: a framework would weigh more than
//! what it serves.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, bail};
use holdfast_reconcile::Metrics;
use ipnet::Ipv4Net;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::home::Facts;

/// Where the page is.
pub const PATH: &str = "/metrics";
/// As Prometheus names the text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Longest request that is read.
const REQUEST_MAX: usize = 8 << 10;
/// Longest time for one request, or for one answer.
const PROMPT: Duration = Duration::from_secs(5);

/// Where the pages of a home are: the controllers', and each node's by its name.
#[must_use]
pub fn endpoints(facts: &Facts) -> Vec<(String, SocketAddr)> {
    let controller = ("controller".to_owned(), controller(facts));
    let agents = facts.nodes.iter().map(|node| (node.name.clone(), agent(facts, node.address.into())));
    std::iter::once(controller).chain(agents).collect()
}

/// The controllers' address.
#[must_use]
pub fn controller(facts: &Facts) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], facts.metrics_port))
}

/// The address of a node's agent.
#[must_use]
pub fn agent(facts: &Facts, node: IpAddr) -> SocketAddr {
    SocketAddr::new(node, facts.metrics_port)
}

/// Serves the page for ever, to this machine and to `network`: guests reach the nodes' addresses, too, and
/// the names of other VMs are none of their business.
///
/// # Errors
/// Never returns one at present: what fails is tried again.
pub async fn serve(address: SocketAddr, network: Ipv4Net, metrics: Metrics) -> anyhow::Result<()> {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                tracing::warn!(%address, %error, "the metrics page cannot be served yet");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    };
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        if !is_ours(peer.ip(), &network) {
            continue;
        }
        let metrics = metrics.clone();
        tokio::spawn(async move {
            // Who hangs up or dawdles does not get the page; nobody else cares.
            let _ = tokio::time::timeout(PROMPT * 2, converse(stream, &metrics)).await;
        });
    }
}

fn is_ours(peer: IpAddr, network: &Ipv4Net) -> bool {
    match peer {
        IpAddr::V4(peer) => peer.is_loopback() || network.contains(&peer),
        IpAddr::V6(peer) => peer.is_loopback(),
    }
}

async fn converse(mut stream: TcpStream, metrics: &Metrics) -> std::io::Result<()> {
    let head = head(&mut stream).await?;
    let (code, body) = match request(&head) {
        Some(("GET" | "HEAD", PATH)) => ("200 OK", metrics.text()),
        Some(("GET" | "HEAD", _)) => ("404 Not Found", format!("the page is {PATH}\n")),
        Some(_) => ("405 Method Not Allowed", "only GET and HEAD\n".to_owned()),
        None => ("400 Bad Request", "not a request\n".to_owned()),
    };
    let answer = format!(
        "HTTP/1.1 {code}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    if !head.starts_with("HEAD ") {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

/// Everything up to the empty line.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|four| four == b"\r\n\r\n") && bytes.len() < REQUEST_MAX {
        if stream.read_buf(&mut bytes).await? == 0 {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Method and path of a request, without its query.
fn request(head: &str) -> Option<(&str, &str)> {
    let mut words = head.lines().next()?.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    words.next()?.starts_with("HTTP/1.").then(|| (method, target.split('?').next().unwrap_or(target)))
}

/// Fetches the page of one process.
///
/// # Errors
/// When it is not there, or answers with something else.
pub async fn fetch(address: SocketAddr) -> anyhow::Result<String> {
    let limit = tokio::time::timeout(PROMPT, read(address)).await;
    limit.map_err(|_| anyhow::anyhow!("{address} did not answer within {} s", PROMPT.as_secs()))?
}

async fn read(address: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
    let request = format!("GET {PATH} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.with_context(|| format!("read from {address}"))?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
        _ => bail!("{address} answered {:?}", answer.lines().next().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_do_not_get_the_page() {
        let network: Ipv4Net = "10.199.7.0/24".parse().unwrap();
        for (peer, want) in [
            ("127.0.0.1", true),
            ("10.199.7.1", true),
            ("10.66.10.3", false),
            ("::1", true),
            ("fe80::1", false),
        ] {
            assert_eq!(is_ours(peer.parse().unwrap(), &network), want, "{peer}");
        }
    }

    #[test]
    fn requests_are_read() {
        for (head, want) in [
            ("GET /metrics HTTP/1.1\r\n", Some(("GET", "/metrics"))),
            ("GET /metrics?a=b HTTP/1.0\r\n", Some(("GET", "/metrics"))),
            ("GET /metrics\r\n", None),
            ("", None),
        ] {
            assert_eq!(request(head), want, "{head}");
        }
    }

    #[tokio::test]
    async fn the_page_is_served_and_fetched() {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let metrics = Metrics::default();
        metrics.set("holdfast_a", "A.", &[], 1.0);
        let server = tokio::spawn(serve(port, "10.199.7.0/24".parse().unwrap(), metrics.clone()));
        let page = loop {
            match fetch(port).await {
                Ok(page) => break page,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        assert_eq!(page, metrics.text());
        let mut stream = TcpStream::connect(port).await.unwrap();
        stream.write_all(b"GET /other HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        server.abort();
    }
}
