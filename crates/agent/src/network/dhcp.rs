//! DHCP for exactly one guest behind one tap (hypervisor.md §13.2, vm-lifecycle.md §9.7).
//!
//! [`answer`] decides and does no I/O; [`serve`] is the loop around it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use dhcproto::v4::{DhcpOption, DhcpOptions, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use ipnet::Ipv4Net;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::names::Mac;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// RFC 2131: all ones means the lease never ends.
const FOREVER: u32 = u32::MAX;

/// What the guest behind one tap is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The only client that gets an answer.
    pub mac: Mac,
    /// Its address, with a /32 mask.
    pub address: Ipv4Addr,
    /// Address of the gateway, which is also the server's identity.
    pub gateway: Ipv4Addr,
    /// Name of the guest (option 12).
    pub host_name: String,
    /// Resolvers (option 6); the option is left out when there are none.
    pub dns: Vec<Ipv4Addr>,
    /// Largest packet in octets (option 26).
    pub mtu: u16,
}

/// The reply to one message of the guest, or none when it gets none: another machine's request, a
/// message for another server, or one that wants no answer.
pub fn answer(lease: &Lease, request: &Message) -> Option<Message> {
    if request.opcode() != Opcode::BootRequest || request.chaddr() != lease.mac.0 {
        return None;
    }
    let options = request.opts();
    if let Some(DhcpOption::ServerIdentifier(server)) = options.get(OptionCode::ServerIdentifier)
        && *server != lease.gateway
    {
        return None;
    }
    match options.msg_type()? {
        MessageType::Discover => Some(reply(lease, request, MessageType::Offer)),
        MessageType::Request => {
            let wanted = match options.get(OptionCode::RequestedIpAddress) {
                Some(DhcpOption::RequestedIpAddress(address)) => *address,
                _ => request.ciaddr(),
            };
            let kind = if wanted == lease.address { MessageType::Ack } else { MessageType::Nak };
            Some(reply(lease, request, kind))
        }
        MessageType::Inform => Some(reply(lease, request, MessageType::Ack)),
        _ => None,
    }
}

fn reply(lease: &Lease, request: &Message, kind: MessageType) -> Message {
    let unset = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(request.xid(), unset, unset, unset, unset, &lease.mac.0);
    message.set_opcode(Opcode::BootReply);
    message.set_flags(Flags::default().set_broadcast());
    let informing = request.opts().msg_type() == Some(MessageType::Inform);
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(lease.gateway));
    if kind == MessageType::Nak {
        return message;
    }
    if !informing {
        options.insert(DhcpOption::AddressLeaseTime(FOREVER));
    }
    configuration(lease, options);
    message.set_ciaddr(request.ciaddr());
    if !informing {
        message.set_yiaddr(lease.address);
    }
    message
}

fn configuration(lease: &Lease, options: &mut DhcpOptions) {
    let everywhere = Ipv4Net::default();
    options.insert(DhcpOption::SubnetMask(Ipv4Addr::BROADCAST));
    options.insert(DhcpOption::Router(vec![lease.gateway]));
    options.insert(DhcpOption::ClasslessStaticRoute(vec![
        (Ipv4Net::from(lease.gateway), Ipv4Addr::UNSPECIFIED),
        (everywhere, lease.gateway),
    ]));
    options.insert(DhcpOption::Hostname(lease.host_name.clone()));
    options.insert(DhcpOption::InterfaceMtu(lease.mtu));
    if !lease.dns.is_empty() {
        options.insert(DhcpOption::DomainNameServer(lease.dns.clone()));
    }
}

/// Where the reply goes: to the client's address when it already uses it, otherwise to everybody
/// on the wire, which is the one guest.
fn destination(reply: &Message) -> SocketAddrV4 {
    let address = match reply.opts().msg_type() {
        Some(MessageType::Nak) => Ipv4Addr::BROADCAST,
        _ if reply.ciaddr() == Ipv4Addr::UNSPECIFIED => Ipv4Addr::BROADCAST,
        _ => reply.ciaddr(),
    };
    SocketAddrV4::new(address, CLIENT_PORT)
}

/// The two sockets of one tap: broadcasts reach only the wildcard one; replies leave from the one
/// bound to the gateway's address, so that the guest sees the gateway as their source.
#[derive(Debug)]
pub struct Sockets {
    broadcast: UdpSocket,
    gateway: UdpSocket,
}

impl Sockets {
    /// Opens both sockets on one tap. The tap must exist, the gateway's address must be on a link
    /// of this namespace.
    ///
    /// # Errors
    /// The operating system's error of opening or binding, for example a missing privilege.
    pub fn open(tap: &str, gateway: Ipv4Addr) -> io::Result<Self> {
        Ok(Self { broadcast: open_on(tap, Ipv4Addr::UNSPECIFIED)?, gateway: open_on(tap, gateway)? })
    }
}

fn open_on(tap: &str, address: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(tap.as_bytes()))?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((address, SERVER_PORT)).into())?;
    UdpSocket::from_std(socket.into())
}

/// Answers the guest until the task is dropped or the tap is gone.
///
/// # Errors
/// The operating system's error once the tap does not exist any more.
pub async fn serve(sockets: Sockets, lease: Lease) -> io::Result<()> {
    let mut from_all = vec![0; 2048];
    let mut from_one = vec![0; 2048];
    loop {
        let request = tokio::select! {
            // One guest is behind both: it takes turns with itself.
            biased;
            got = sockets.broadcast.recv_from(&mut from_all) => &from_all[..got?.0],
            got = sockets.gateway.recv_from(&mut from_one) => &from_one[..got?.0],
        };
        let Ok(request) = Message::decode(&mut Decoder::new(request)) else {
            tracing::debug!(mac = %lease.mac, "a DHCP message of the guest could not be read; ignored");
            continue;
        };
        let Some(reply) = answer(&lease, &request) else { continue };
        tracing::debug!(
            mac = %lease.mac, address = %lease.address,
            asked = ?request.opts().msg_type(), told = ?reply.opts().msg_type(), "DHCP"
        );
        let mut bytes = Vec::with_capacity(512);
        if let Err(error) = reply.encode(&mut Encoder::new(&mut bytes)) {
            tracing::error!(mac = %lease.mac, %error, "a DHCP reply could not be encoded");
            continue;
        }
        // A guest that went down between question and answer is no reason to stop serving it.
        if let Err(error) = sockets.gateway.send_to(&bytes, destination(&reply)).await {
            tracing::debug!(mac = %lease.mac, %error, "a DHCP reply could not be sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

    fn lease() -> Lease {
        Lease {
            mac: "52:54:00:00:00:0a".parse().unwrap(),
            address: Ipv4Addr::new(10, 66, 10, 14),
            gateway: GATEWAY,
            host_name: "linux-vm".into(),
            dns: vec![],
            mtu: 1500,
        }
    }

    fn request(kind: MessageType, edit: impl FnOnce(&mut Message)) -> Message {
        let unset = Ipv4Addr::UNSPECIFIED;
        let mut m = Message::new_with_id(7, unset, unset, unset, unset, &lease().mac.0);
        m.opts_mut().insert(DhcpOption::MessageType(kind));
        edit(&mut m);
        m
    }

    fn wants(last: u8) -> impl FnOnce(&mut Message) {
        move |m| {
            let address = Ipv4Addr::new(10, 66, 10, last);
            m.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
        }
    }

    fn show(reply: Option<&Message>) -> String {
        reply.map_or("nothing".into(), |r| {
            format!("{:?} {} to {}", r.opts().msg_type().unwrap(), r.yiaddr(), destination(r))
        })
    }

    #[test]
    fn answers_table() {
        let server = |last: u8| DhcpOption::ServerIdentifier(Ipv4Addr::new(169, 254, 1, last));
        let rows = [
            ("discover", request(MessageType::Discover, |_| ()), "Offer 10.66.10.14 to 255.255.255.255:68"),
            (
                "request ours",
                request(MessageType::Request, wants(14)),
                "Ack 10.66.10.14 to 255.255.255.255:68",
            ),
            (
                "request another",
                request(MessageType::Request, wants(15)),
                "Nak 0.0.0.0 to 255.255.255.255:68",
            ),
            (
                "renew",
                request(MessageType::Request, |m| {
                    m.set_ciaddr(Ipv4Addr::new(10, 66, 10, 14));
                }),
                "Ack 10.66.10.14 to 10.66.10.14:68",
            ),
            (
                "renew another",
                request(MessageType::Request, |m| {
                    m.set_ciaddr(Ipv4Addr::new(10, 66, 10, 15));
                }),
                "Nak 0.0.0.0 to 255.255.255.255:68",
            ),
            (
                "another server was chosen",
                request(MessageType::Request, |m| {
                    m.opts_mut().insert(server(2));
                }),
                "nothing",
            ),
            (
                "inform",
                request(MessageType::Inform, |m| {
                    m.set_ciaddr(Ipv4Addr::new(10, 66, 10, 14));
                }),
                "Ack 0.0.0.0 to 10.66.10.14:68",
            ),
            ("release", request(MessageType::Release, |_| ()), "nothing"),
            (
                "another machine",
                request(MessageType::Discover, |m| {
                    m.set_chaddr(&[2, 0, 0, 0, 0, 1]);
                }),
                "nothing",
            ),
            (
                "a reply, not a request",
                request(MessageType::Discover, |m| {
                    m.set_opcode(Opcode::BootReply);
                }),
                "nothing",
            ),
        ];
        for (what, request, expected) in rows {
            assert_eq!(show(answer(&lease(), &request).as_ref()), expected, "{what}");
        }
    }

    #[test]
    fn an_offer_configures_a_slash_32_behind_a_link_local_gateway() {
        let offer = answer(&lease(), &request(MessageType::Discover, |_| ())).unwrap();
        let mut bytes = Vec::new();
        offer.encode(&mut Encoder::new(&mut bytes)).unwrap();
        let holds = |option: &[u8]| bytes.windows(option.len()).any(|w| w == option);
        assert!(holds(&[1, 4, 255, 255, 255, 255]), "mask");
        assert!(holds(&[3, 4, 169, 254, 1, 1]), "router");
        assert!(holds(&[54, 4, 169, 254, 1, 1]), "server");
        assert!(holds(&[51, 4, 255, 255, 255, 255]), "lease time");
        assert!(holds(&[26, 2, 5, 220]), "mtu");
        assert!(holds(b"\x0c\x08linux-vm"), "host name");
        // gateway/32 on the link, then everything through it
        assert!(
            holds(&[121, 14, 32, 169, 254, 1, 1, 0, 0, 0, 0, 0, 169, 254, 1, 1]),
            "classless routes: {bytes:?}"
        );
        assert!(offer.opts().get(OptionCode::DomainNameServer).is_none(), "no resolver, no option");
    }

    #[test]
    fn a_refusal_carries_no_configuration() {
        let nak = answer(&lease(), &request(MessageType::Request, wants(99))).unwrap();
        assert!(nak.opts().get(OptionCode::Router).is_none());
        assert!(nak.opts().get(OptionCode::AddressLeaseTime).is_none());
    }
}
