//! What went wrong on the way to a server, as part of a sentence for the user, and whether the same
//! request may succeed later.

use std::io::ErrorKind;

use ureq::Timeout;

/// One attempt's failure.
#[derive(Debug)]
pub struct Cause {
    /// Part of a sentence: what happened, and what helps where somebody can help.
    pub why: String,
    /// Another attempt may succeed.
    pub again: bool,
}

impl Cause {
    /// Goes away by itself, or when somebody repairs the server.
    pub fn passing(why: impl Into<String>) -> Self {
        Self { why: why.into(), again: true }
    }

    /// Stays until the request is another one.
    pub fn lasting(why: impl Into<String>) -> Self {
        Self { why: why.into(), again: false }
    }
}

impl From<ureq::Error> for Cause {
    fn from(error: ureq::Error) -> Self {
        match error {
            ureq::Error::Io(error) => io(&error),
            ureq::Error::HostNotFound => {
                Self::passing("the name of the server is unknown; check the URL, or the name service")
            }
            ureq::Error::ConnectionFailed => Self::passing("the server cannot be reached"),
            ureq::Error::Timeout(Timeout::Resolve) => Self::passing("the name service does not answer"),
            ureq::Error::Timeout(Timeout::Connect) => {
                Self::passing("the server does not answer; check the address and the way to it")
            }
            ureq::Error::Timeout(_) => Self::passing("the server is connected but sends nothing"),
            ureq::Error::BadUri(why) => Self::lasting(format!("the URL cannot be used: {why}")),
            ureq::Error::TooManyRedirects => Self::lasting("the server redirects in circles"),
            ureq::Error::Rustls(error) => tls(&error),
            ureq::Error::Tls(why) => Self::lasting(format!("TLS does not work: {why}")),
            other => Self::passing(other.to_string()),
        }
    }
}

fn io(error: &std::io::Error) -> Cause {
    if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return tls(inner);
    }
    match error.kind() {
        ErrorKind::ConnectionRefused => {
            Cause::passing("nothing listens there (connection refused); start the server or correct the URL")
        }
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
            Cause::passing("no way leads to that address; check the URL and the network of the nodes")
        }
        ErrorKind::TimedOut => {
            Cause::passing("the server does not answer; check the address and the way to it")
        }
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
            Cause::passing("the connection broke")
        }
        ErrorKind::UnexpectedEof => Cause::passing("the server closed the connection early"),
        _ => Cause::passing(error.to_string()),
    }
}

/// A certificate that is not trusted now is not trusted in a minute either.
fn tls(error: &rustls::Error) -> Cause {
    match error {
        rustls::Error::InvalidCertificate(why) => Cause::lasting(format!(
            "its certificate is not trusted ({why}); give the authority in caBundle or correct the URL"
        )),
        other => Cause::lasting(format!("TLS does not work: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_sentences_and_only_what_may_pass_is_tried_again() {
        let of_io = |kind: ErrorKind| ureq::Error::Io(kind.into());
        let untrusted = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let cases = [
            (of_io(ErrorKind::ConnectionRefused), "nothing listens there", true),
            (of_io(ErrorKind::NetworkUnreachable), "no way leads to that address", true),
            (of_io(ErrorKind::ConnectionReset), "the connection broke", true),
            (ureq::Error::HostNotFound, "the name of the server is unknown", true),
            (ureq::Error::Timeout(Timeout::Connect), "the server does not answer", true),
            (ureq::Error::Timeout(Timeout::RecvResponse), "sends nothing", true),
            (ureq::Error::BadUri("x".into()), "the URL cannot be used", false),
            (ureq::Error::Io(std::io::Error::other(untrusted)), "its certificate is not trusted", false),
        ];
        for (error, part, again) in cases {
            let text = format!("{error:?}");
            let cause = Cause::from(error);
            assert!(cause.why.contains(part), "{text}: {}", cause.why);
            assert_eq!(cause.again, again, "{text}");
        }
    }
}
