//! Links, addresses, routes and neighbours of the network namespace this process runs in.
//!
//! Routes that this crate sets carry the route protocol [`PROTOCOL`], by which leftovers of a crash
//! are told from everybody else's routes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt as _;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::names::Mac;
use super::plan::Hop;

/// Number in the kernel's routes that marks them as Holdfast's. Free in iproute2's registry.
pub const PROTOCOL: u8 = 72;

/// Links of a namespace: the kernel's number by name.
pub type Links = BTreeMap<String, u32>;

/// The kernel's list of links, of the calling thread's namespace.
const LIST: &str = "/proc/thread-self/net/dev";

/// A netlink request failed.
#[derive(Debug, thiserror::Error)]
#[error("netlink: cannot {action}")]
pub struct NetlinkError {
    action: String,
    #[source]
    source: rtnetlink::Error,
}

fn failed(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetlinkError {
    move |source| NetlinkError { action: action.into(), source }
}

/// The kernel's network tables of one namespace.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Connects to the namespace of the calling thread. Must run inside a tokio runtime; the
    /// connection lives until the last clone is dropped.
    ///
    /// # Errors
    /// The operating system's error of opening the socket.
    pub fn connect() -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// All links of the calling thread's namespace: number by name. Read from the kernel's plain
    /// list, because the full description of every link is large and is not needed.
    ///
    /// # Errors
    /// `/proc` is not mounted, or no socket can be opened.
    pub fn links(&self) -> std::io::Result<Links> {
        let list = holdfast_sys::context(std::fs::read_to_string(LIST), || format!("read {LIST}"))?;
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
        let mut links = Links::new();
        for line in list.lines().skip(2) {
            let Some((name, _)) = line.split_once(':') else { continue };
            let name = name.trim();
            // A link that has just gone away is no link.
            if let Ok(index) = rustix::net::netdevice::name_to_index(&socket, name) {
                links.insert(name.to_owned(), index);
            }
        }
        Ok(links)
    }

    /// Largest packet of a link, octets.
    ///
    /// # Errors
    /// The link is gone or the connection is.
    pub async fn mtu(&self, index: u32) -> Result<u32, NetlinkError> {
        let found: Vec<_> = self
            .handle
            .link()
            .get()
            .match_index(index)
            .execute()
            .try_collect()
            .await
            .map_err(failed(format!("read link {index}")))?;
        let mtu =
            found.iter().flat_map(|message| &message.attributes).find_map(|attribute| match attribute {
                LinkAttribute::Mtu(octets) => Some(*octets),
                _ => None,
            });
        Ok(mtu.unwrap_or(1500))
    }

    /// Gives a link its hardware address and MTU and brings it up.
    ///
    /// # Errors
    /// The kernel refuses, for example because the link is gone.
    pub async fn bring_up(&self, index: u32, mac: Option<Mac>, mtu: Option<u32>) -> Result<(), NetlinkError> {
        let mut link = LinkUnspec::new_with_index(index).up();
        if let Some(mac) = mac {
            link = link.address(mac.0.to_vec());
        }
        if let Some(mtu) = mtu {
            link = link.mtu(mtu);
        }
        self.handle
            .link()
            .change(link.build())
            .execute()
            .await
            .map_err(failed(format!("bring up link {index}")))
    }

    /// Removes a link.
    ///
    /// # Errors
    /// The kernel refuses, for example because the link is gone.
    pub async fn remove_link(&self, index: u32) -> Result<(), NetlinkError> {
        let action = failed(format!("remove link {index}"));
        self.handle.link().del(index).execute().await.map_err(action)
    }

    /// Makes sure that a link has an address with a full-length prefix.
    ///
    /// # Errors
    /// The kernel refuses or the connection is gone.
    pub async fn ensure_address(&self, index: u32, address: Ipv4Addr) -> Result<(), NetlinkError> {
        let present: Vec<_> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute()
            .try_collect()
            .await
            .map_err(failed("list addresses"))?;
        let wanted = AddressAttribute::Address(IpAddr::V4(address));
        if present.iter().any(|m| m.header.index == index && m.attributes.contains(&wanted)) {
            return Ok(());
        }
        let action = failed(format!("add address {address}/32 to link {index}"));
        self.handle.address().add(index, IpAddr::V4(address), 32).execute().await.map_err(action)
    }

    /// Makes the neighbour entry of a guest permanent, so that the first packet to it needs no
    /// question and no answer.
    ///
    /// # Errors
    /// The kernel refuses, for example because the link is gone.
    pub async fn set_neighbour(&self, index: u32, address: Ipv4Addr, mac: Mac) -> Result<(), NetlinkError> {
        self.handle
            .neighbours()
            .add(index, IpAddr::V4(address))
            .link_local_address(&mac.0)
            .replace()
            .execute()
            .await
            .map_err(failed(format!("set neighbour {address} on link {index}")))
    }

    /// The routes of the main table that carry our mark. A route whose hop is none of ours is shown
    /// as [`Hop::Drop`], so that it differs from whatever is desired and gets replaced.
    ///
    /// # Errors
    /// The kernel refuses or the connection is gone.
    pub async fn our_routes(&self, links: &Links) -> Result<Vec<OurRoute>, NetlinkError> {
        let filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes: Vec<RouteMessage> =
            self.handle.route().get(filter).execute().try_collect().await.map_err(failed("list routes"))?;
        Ok(routes.iter().filter_map(|route| our_route(route, links)).collect())
    }

    /// Sets one route, replacing the one that exists for the destination.
    ///
    /// # Errors
    /// The kernel refuses, for example because the tap is gone or the gateway is not reachable.
    pub async fn set_route(
        &self,
        net: Ipv4Net,
        hop: &Target,
        source: Option<Ipv4Addr>,
    ) -> Result<(), NetlinkError> {
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .protocol(RouteProtocol::Other(PROTOCOL));
        route = match hop {
            Target::Link(index) => route.output_interface(*index).scope(RouteScope::Link),
            Target::Via(gateway) => route.gateway(*gateway),
            Target::Drop => route.kind(RouteType::BlackHole),
        };
        if let (Some(source), Target::Link(_)) = (source, hop) {
            route = route.pref_source(source);
        }
        self.handle
            .route()
            .add(route.build())
            .replace()
            .execute()
            .await
            .map_err(failed(format!("set route {net} {hop:?}")))
    }

    /// Removes our route for one destination; it being gone already is success.
    ///
    /// # Errors
    /// The kernel refuses or the connection is gone.
    pub async fn remove_route(&self, net: Ipv4Net) -> Result<(), NetlinkError> {
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .protocol(RouteProtocol::Other(PROTOCOL))
            // "No scope given" and "no kind given" in the language of deletion: match any.
            .scope(RouteScope::NoWhere)
            .kind(RouteType::Unspec)
            .build();
        route.header.address_family = AddressFamily::Inet;
        match self.handle.route().del(route).execute().await {
            Err(rtnetlink::Error::NetlinkError(e)) if is_absent(&e.to_io()) => Ok(()),
            other => other.map_err(failed(format!("remove route {net}"))),
        }
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| {
        code == rustix::io::Errno::SRCH.raw_os_error() || code == rustix::io::Errno::NOENT.raw_os_error()
    })
}

/// The kernel's side of a [`Hop`]: taps are named by their number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Out of this link.
    Link(u32),
    /// To this gateway.
    Via(Ipv4Addr),
    /// Dropped.
    Drop,
}

/// One of our routes as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OurRoute {
    /// Destination.
    pub net: Ipv4Net,
    /// Where it goes.
    pub hop: Hop,
    /// Link it leaves through; none for dropped destinations.
    pub link: Option<u32>,
}

fn our_route(route: &RouteMessage, links: &Links) -> Option<OurRoute> {
    if route.header.address_family != AddressFamily::Inet
        || route.header.protocol != RouteProtocol::Other(PROTOCOL)
    {
        return None;
    }
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let mut gateway = None;
    let mut link = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    let net = Ipv4Net::new(destination, route.header.destination_prefix_length).ok()?;
    let name = |index: u32| links.iter().find(|(_, number)| **number == index).map(|(n, _)| n.clone());
    let hop = match (gateway, link) {
        (Some(gateway), _) => Hop::Via(gateway),
        (None, Some(index)) => name(index).map_or(Hop::Drop, Hop::Tap),
        (None, None) => Hop::Drop,
    };
    Some(OurRoute { net, hop, link })
}
