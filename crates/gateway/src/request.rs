//! What a request asks for, read from its method, path, query and headers.

use std::fmt;

use holdfast_apimachinery::status::Status;
use holdfast_wire::peer::StreamTo;
use http::{HeaderMap, Method, Request, header};

use crate::{GROUP, VERSION};

/// Sub-protocols a client may offer; both mean raw bytes in binary frames.
const PROTOCOLS: [&str; 2] = ["plain.virtualization.deckhouse.io", "plain.kubevirt.io"];
/// Browsers put their token into a sub-protocol with this prefix (cli-and-console.md §11).
const BEARER: &str = "base64url.bearer.authorization.k8s.io.";
/// Subresources of the reference that this gateway does not serve.
const LATER: [&str; 6] = ["freeze", "unfreeze", "addvolume", "removevolume", "cancelevacuation", "scale"];

/// Which stream of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Console,
    Vnc,
    /// A TCP port of the guest.
    Port(u16),
}

impl Kind {
    /// One session at a time; a new one ends the old one.
    pub(crate) fn is_exclusive(self) -> bool {
        !matches!(self, Self::Port(_))
    }

    pub(crate) fn stream(self) -> StreamTo {
        match self {
            Self::Console => StreamTo::Console,
            Self::Vnc => StreamTo::Vnc,
            Self::Port(port) => StreamTo::Port(port),
        }
    }

    pub(crate) fn subresource(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Vnc => "vnc",
            Self::Port(_) => "portforward",
        }
    }

    pub(crate) fn object(self) -> &'static str {
        match self {
            Self::Console => "VirtualMachineConsole",
            Self::Vnc => "VirtualMachineVNC",
            Self::Port(_) => "VirtualMachinePortForward",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "port {port}"),
            Self::Console | Self::Vnc => f.write_str(self.subresource()),
        }
    }
}

/// A request for a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Sub-protocol to answer with.
    pub(crate) protocol: Option<&'static str>,
    pub(crate) websocket_key: String,
}

impl Call {
    /// Reads a request.
    pub(crate) fn parse<B>(request: &Request<B>) -> Result<Self, Status> {
        let prefix = format!("/apis/{GROUP}/{VERSION}/namespaces/");
        let path = request.uri().path().strip_prefix(&prefix).ok_or_else(Status::unknown_resource)?;
        let parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
        let [namespace, "virtualmachines", name, subresource] = parts.as_slice() else {
            return Err(Status::unknown_resource());
        };
        let kind = match *subresource {
            "console" => Kind::Console,
            "vnc" => Kind::Vnc,
            "portforward" => Kind::Port(port(request.uri().query().unwrap_or_default())?),
            later if LATER.contains(&later) => {
                return Err(Status::new(
                    501,
                    "NotImplemented",
                    format!("subresource {later:?} is not available yet"),
                ));
            }
            _ => return Err(Status::unknown_resource()),
        };
        if *request.method() != Method::GET && *request.method() != Method::POST {
            return Err(Status::method_not_allowed());
        }
        if query(request.uri().query().unwrap_or_default(), "probe").is_some() {
            return Err(Status::new(
                501,
                "NotImplemented",
                "probing who holds a session is not available yet",
            ));
        }
        let headers = request.headers();
        Ok(Self {
            namespace: (*namespace).to_owned(),
            name: (*name).to_owned(),
            kind,
            protocol: protocol(headers)?,
            websocket_key: websocket_key(headers, kind)?,
        })
    }
}

fn query<'q>(text: &'q str, key: &str) -> Option<&'q str> {
    let mut pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(name, value)| *name == key && !value.is_empty()).map(|(_, value)| value)
}

fn port(text: &str) -> Result<u16, Status> {
    match query(text, "protocol") {
        None | Some("tcp") => {}
        Some("udp") => {
            return Err(Status::new(501, "NotImplemented", "forwarding udp is not available yet; use tcp"));
        }
        Some(other) => return Err(Status::bad_request(format!("unknown protocol {other:?}; use tcp"))),
    }
    let given = query(text, "port").ok_or_else(|| Status::bad_request("port is missing: add ?port=N"))?;
    given
        .parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| Status::bad_request(format!("port {given:?} is not a number from 1 to 65535")))
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
}

fn websocket_key(headers: &HeaderMap, kind: Kind) -> Result<String, Status> {
    let upgrades =
        has_token(headers, header::UPGRADE, "websocket") && has_token(headers, header::CONNECTION, "upgrade");
    let version = headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|v| v == "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|v| v.to_str().ok());
    match key {
        Some(key) if upgrades && version => Ok(key.to_owned()),
        _ => Err(Status::bad_request(format!(
            "{} is a stream: the request must upgrade to a WebSocket of version 13",
            kind.subresource()
        ))),
    }
}

/// The sub-protocol to answer with: the first offered that is known, else none.
fn protocol(headers: &HeaderMap) -> Result<Option<&'static str>, Status> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|v| v.to_str().ok());
    let offered: Vec<&str> =
        values.flat_map(|v| v.split(',')).map(str::trim).filter(|p| !p.is_empty()).collect();
    let real: Vec<&&str> = offered.iter().filter(|p| !p.starts_with(BEARER)).collect();
    if real.is_empty() && !offered.is_empty() {
        return Err(Status::bad_request("missing additional subprotocol"));
    }
    Ok(real.iter().find_map(|offer| PROTOCOLS.into_iter().find(|known| *known == **offer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str, protocols: &str) -> Result<Call, Status> {
        let mut request = Request::builder()
            .uri(format!("/apis/{GROUP}/{VERSION}/namespaces/shop/virtualmachines/{path}"))
            .header("upgrade", "websocket")
            .header("connection", "keep-alive, Upgrade")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "k");
        if !protocols.is_empty() {
            request = request.header("sec-websocket-protocol", protocols);
        }
        Call::parse(&request.body(()).unwrap())
    }

    #[test]
    fn paths_name_a_stream() {
        assert_eq!(parse("web/console", "").unwrap().kind, Kind::Console);
        assert_eq!(parse("web/vnc", "").unwrap().kind, Kind::Vnc);
        assert_eq!(parse("web/portforward?port=22&protocol=tcp", "").unwrap().kind, Kind::Port(22));
        let code = |path: &str| parse(path, "").unwrap_err().code;
        assert_eq!(code("web/portforward"), 400);
        assert_eq!(code("web/portforward?port=0"), 400);
        assert_eq!(code("web/portforward?port=70000"), 400);
        assert_eq!(code("web/portforward?port=53&protocol=udp"), 501);
        assert_eq!(code("web/freeze"), 501);
        assert_eq!(code("web/nothing"), 404);
        assert_eq!(code("web"), 404);
        assert_eq!(code("web/console?probe=true"), 501);
    }

    #[test]
    fn only_websockets_are_served() {
        let plain =
            Request::builder().uri(format!("/apis/{GROUP}/{VERSION}/namespaces/n/virtualmachines/v/console"));
        assert_eq!(Call::parse(&plain.body(()).unwrap()).unwrap_err().code, 400);
        let delete = Request::builder()
            .method(Method::DELETE)
            .uri(format!("/apis/{GROUP}/{VERSION}/namespaces/n/virtualmachines/v/console"));
        assert_eq!(Call::parse(&delete.body(()).unwrap()).unwrap_err().code, 405);
    }

    // CC-40: either name, or none; a browser's token is no protocol.
    #[test]
    fn sub_protocols() {
        let chosen = |offer: &str| {
            parse("web/console", offer).map(|call| call.protocol).map_err(|status| status.message)
        };
        assert_eq!(chosen(""), Ok(None));
        assert_eq!(chosen("plain.kubevirt.io"), Ok(Some("plain.kubevirt.io")));
        assert_eq!(
            chosen("plain.virtualization.deckhouse.io"),
            Ok(Some("plain.virtualization.deckhouse.io"))
        );
        assert_eq!(chosen("other, plain.kubevirt.io"), Ok(Some("plain.kubevirt.io")));
        assert_eq!(chosen("other"), Ok(None));
        assert_eq!(
            chosen("base64url.bearer.authorization.k8s.io.abc, plain.kubevirt.io"),
            Ok(Some("plain.kubevirt.io"))
        );
        assert_eq!(
            chosen("base64url.bearer.authorization.k8s.io.abc"),
            Err("missing additional subprotocol".to_owned())
        );
    }
}
