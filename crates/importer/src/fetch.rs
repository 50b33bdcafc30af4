//! A download as a reader: resumes after interruptions, gives up after minutes without a byte, and
//! computes checksums over the bytes as received.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use md5::Md5;
use sha2::{Digest, Sha256};
use ureq::Agent;
use ureq::http::Response;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use crate::Error;
use crate::cause::Cause;
use crate::progress::Counter;

/// Without a byte for this long one attempt is over.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Time to reach the server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Without a byte for this long the download has failed.
const GIVE_UP: Duration = Duration::from_secs(300);
/// First and longest pause between attempts that brought nothing.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(20));
/// Certificates that the machine trusts.
const SYSTEM_CERTIFICATES: [&str; 2] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// Demanded checksums, hexadecimal.
#[derive(Clone, Debug, Default)]
pub struct Checksums {
    /// MD5.
    pub md5: Option<String>,
    /// SHA-256.
    pub sha256: Option<String>,
}

/// A download under way.
pub struct Download {
    agent: Agent,
    url: String,
    body: Option<Box<dyn Read + Send>>,
    /// Bytes handed out.
    position: u64,
    total: Option<u64>,
    /// Identity of the file on the server: a changed file must not be glued to the old one.
    tag: Option<String>,
    md5: Md5,
    sha256: Sha256,
    counter: Arc<Counter>,
    give_up: Duration,
    silent_since: Instant,
    /// Before the next attempt; zero after one that brought something.
    pause: Duration,
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Download")
            .field("url", &self.url)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl Download {
    /// Opens the download; keeps trying while the server cannot be reached.
    ///
    /// # Errors
    /// When the server refuses, or cannot be reached for minutes.
    pub fn open(url: &str, ca_bundle: Option<&str>, counter: Arc<Counter>) -> Result<Self, Error> {
        let mut download = Self::new(url, ca_bundle, counter)?;
        download.connect()?;
        Ok(download)
    }

    fn new(url: &str, ca_bundle: Option<&str>, counter: Arc<Counter>) -> Result<Self, Error> {
        Ok(Self {
            agent: agent(ca_bundle).map_err(|why| Error::Download { url: shown(url), why })?,
            url: url.to_owned(),
            body: None,
            position: 0,
            total: None,
            tag: None,
            md5: Md5::new(),
            sha256: Sha256::new(),
            counter,
            give_up: GIVE_UP,
            silent_since: Instant::now(),
            pause: Duration::ZERO,
        })
    }

    /// Size of the file, where the server says it.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// Bytes received.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Reads what is left and compares the checksums.
    ///
    /// # Errors
    /// When the rest cannot be read, or a checksum differs.
    pub fn finish(mut self, demanded: &Checksums) -> Result<u64, Error> {
        let mut buffer = vec![0; 64 << 10];
        while self.next(&mut buffer)? > 0 {}
        let sums = [
            ("md5", &demanded.md5, hex(&self.md5.finalize())),
            ("sha256", &demanded.sha256, hex(&self.sha256.finalize())),
        ];
        for (kind, expected, actual) in sums {
            if let Some(expected) =
                expected.as_ref().filter(|expected| !expected.eq_ignore_ascii_case(&actual))
            {
                return Err(Error::Checksum { kind, expected: expected.clone(), actual });
            }
        }
        Ok(self.position)
    }

    /// Reads the next bytes; 0 at the end.
    fn next(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        loop {
            let body = match &mut self.body {
                Some(body) => body,
                None => {
                    self.connect()?;
                    continue;
                }
            };
            let failure = match body.read(buffer) {
                Ok(0) if self.total.is_some_and(|total| self.position < total) => {
                    Cause::passing("the server closed the connection early")
                }
                Ok(count) => {
                    self.md5.update(&buffer[..count]);
                    self.sha256.update(&buffer[..count]);
                    self.position += count as u64;
                    self.counter.add(count as u64);
                    (self.silent_since, self.pause) = (Instant::now(), Duration::ZERO);
                    return Ok(count);
                }
                Err(error) => Cause::from(ureq::Error::Io(error)),
            };
            self.body = None;
            let trouble =
                format!("Downloading {} is being resumed after: {}.", shown(&self.url), failure.why);
            self.again(failure, trouble)?;
        }
    }

    /// Connects, again and again with growing pauses, at the present position.
    fn connect(&mut self) -> Result<(), Error> {
        loop {
            match self.attempt() {
                Ok(body) => {
                    self.body = Some(body);
                    self.counter.trouble(None);
                    return Ok(());
                }
                Err(failure) => {
                    let trouble = format!("Waiting for {}, still trying: {}.", shown(&self.url), failure.why);
                    self.again(failure, trouble)?;
                }
            }
        }
    }

    /// After an attempt that failed: tells the trouble and waits, or gives up.
    fn again(&mut self, failure: Cause, trouble: String) -> Result<(), Error> {
        if !failure.again || self.silent_since.elapsed() + self.pause > self.give_up {
            return Err(Error::Download { url: shown(&self.url), why: failure.why });
        }
        self.counter.trouble(Some(trouble));
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).clamp(PAUSE.0, PAUSE.1);
        Ok(())
    }

    fn attempt(&mut self) -> Result<Box<dyn Read + Send>, Cause> {
        let mut request = self.agent.get(&self.url);
        if self.position > 0 {
            request = request.header("Range", format!("bytes={}-", self.position));
        }
        let response = request.call()?;
        let status = response.status();
        let resumed = status.as_u16() == 206;
        if !resumed && status.as_u16() != 200 {
            let again = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
            return Err(Cause { why: format!("the server answers {status}"), again });
        }
        self.same_file(&response, resumed)?;
        let mut body = response.into_body().into_reader();
        if !resumed && self.position > 0 {
            skip(&mut body, self.position).map_err(|error| Cause::from(ureq::Error::Io(error)))?;
        }
        Ok(Box::new(body))
    }

    /// Remembers size and identity of the file, or compares them on a later attempt.
    fn same_file(&mut self, response: &Response<ureq::Body>, resumed: bool) -> Result<(), Cause> {
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let length = header("content-length").and_then(|text| text.parse::<u64>().ok());
        let total = length.map(|length| if resumed { self.position + length } else { length });
        let tag = header("etag").or_else(|| header("last-modified")).map(str::to_owned);
        if self.position == 0 {
            (self.total, self.tag) = (total, tag);
            return Ok(());
        }
        if total != self.total || tag != self.tag {
            return Err(Cause::lasting("the file on the server changed during the download"));
        }
        Ok(())
    }
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.next(buffer).map_err(std::io::Error::other)
    }
}

/// The URL without a user's name and password.
fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

fn skip(body: &mut impl Read, count: u64) -> std::io::Result<()> {
    let skipped = std::io::copy(&mut body.take(count), &mut std::io::sink())?;
    if skipped < count {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

fn agent(ca_bundle: Option<&str>) -> Result<Agent, String> {
    // A second call fails because the first has installed it: fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut certificates: Vec<Certificate<'static>> = Vec::new();
    let system = SYSTEM_CERTIFICATES.iter().find_map(|path| std::fs::read(path).ok());
    certificates.extend(certificates_of(&system.unwrap_or_default()));
    if let Some(bundle) = ca_bundle {
        let own = certificates_of(bundle.as_bytes());
        if own.is_empty() {
            return Err("caBundle holds no PEM certificate".to_owned());
        }
        certificates.extend(own);
    }
    let tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&certificates)).build();
    Ok(Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(READ_TIMEOUT))
        .timeout_per_read(Some(READ_TIMEOUT))
        .user_agent(concat!("holdfast-importer/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent())
}

fn certificates_of(pem: &[u8]) -> Vec<Certificate<'static>> {
    parse_pem(pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            Ok(_) | Err(_) => None,
        })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn urls_are_shown_without_passwords() {
        assert_eq!(shown("http://u:p@host:81/a?b@c"), "http://host:81/a?b@c");
        assert_eq!(shown("https://host/a@b"), "https://host/a@b");
        assert_eq!(shown("host"), "host");
    }

    /// Promises a file and never sends a byte of it, on every connection.
    #[test]
    fn a_server_that_sends_nothing_is_given_up_and_not_flooded() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/x", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let mut connections = 0;
            for mut stream in listener.incoming().flatten() {
                connections += 1;
                let mut request = [0; 1024];
                // The last connection is the test's own, which says nothing.
                if stream.read(&mut request).unwrap_or(0) == 0 {
                    break;
                }
                let _ =
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n");
            }
            connections
        });
        let mut download = Download::new(&url, None, Arc::default()).unwrap();
        download.give_up = Duration::from_secs(2);
        let failure = download.read(&mut [0; 16]).unwrap_err().to_string();
        assert!(failure.contains("closed the connection early"), "{failure}");
        drop(std::net::TcpStream::connect(url.trim_start_matches("http://").trim_end_matches("/x")).unwrap());
        let connections = server.join().unwrap();
        assert!((2..=5).contains(&connections), "{connections}");
    }
}
