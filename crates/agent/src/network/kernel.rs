//! Where the network touches the kernel: every operation that changes or reads something outside of this
//! process. What should be there is decided above ([`super::plan`], [`super::Network`]); production uses
//! [`Linux`], a test or a simulation a table of its own ([`crate::memory`]).

use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use holdfast_wire::local::BoxFuture;
use ipnet::Ipv4Net;

use super::in_flight::{self, InFlight};
use super::names::{GATEWAY_MAC, Mac};
use super::netlink::{Links, Netlink, OurRoute, Target};
use super::{NetworkError, dhcp, filter, find, io_failed, sysctl};

/// What the kernel shall know of one guest's wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire {
    /// Name of the tap.
    pub tap: String,
    /// The tap's number.
    pub link: u32,
    /// Hardware address of the guest.
    pub mac: Mac,
    /// Address of the guest.
    pub address: Ipv4Addr,
    /// Largest packet, octets.
    pub mtu: u32,
}

/// The network of one node as its kernel has it. All methods may be called concurrently.
pub trait Kernel: Debug + Send + Sync {
    /// All links: number by name.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn links(&self) -> Result<Links, NetworkError>;

    /// Prepares the node: forwarding on, `gateway` on the loopback link. Returns the largest packet of
    /// the uplink, octets.
    fn prepare_node<'a>(
        &'a self,
        uplink: &'a str,
        gateway: Ipv4Addr,
    ) -> BoxFuture<'a, Result<u32, NetworkError>>;

    /// Creates a tap, or opens the one that exists and that nobody holds. It lives as long as somebody
    /// holds the descriptor; none where taps have no descriptors.
    ///
    /// # Errors
    /// `ResourceBusy` when another process holds it.
    fn open_tap(&self, tap: &str) -> Result<Option<OwnedFd>, NetworkError>;

    /// Makes a tap ready for its guest: up, the gateway's hardware address, the guest as neighbour.
    fn prepare_tap<'a>(&'a self, wire: &'a Wire) -> BoxFuture<'a, Result<(), NetworkError>>;

    /// Starts to serve one guest with its lease; it is served until the returned future is dropped or
    /// the tap is gone.
    ///
    /// # Errors
    /// The tap is gone, or a privilege is missing.
    fn serve_dhcp(
        &self,
        tap: &str,
        gateway: Ipv4Addr,
        lease: dhcp::Lease,
    ) -> Result<BoxFuture<'static, ()>, NetworkError>;

    /// Notes the packets for `guest` that the tap of this number is given. None where no packets flow.
    fn note_packets(
        &self,
        tap: u32,
        guest: Ipv4Addr,
    ) -> BoxFuture<'_, Result<Option<InFlight>, NetworkError>>;

    /// Replaces the filter of all guests of this node in one step.
    fn load_filter<'a>(
        &'a self,
        table: &'a str,
        gateway: Ipv4Addr,
        guests: &'a [filter::Guest],
    ) -> BoxFuture<'a, Result<(), NetworkError>>;

    /// Removes a link.
    fn remove_link(&self, link: u32) -> BoxFuture<'_, Result<(), NetworkError>>;

    /// The routes that Holdfast set.
    fn our_routes<'a>(&'a self, links: &'a Links) -> BoxFuture<'a, Result<Vec<OurRoute>, NetworkError>>;

    /// Sets one route, replacing the one that exists for the destination.
    fn set_route(
        &self,
        net: Ipv4Net,
        target: Target,
        source: Option<Ipv4Addr>,
    ) -> BoxFuture<'_, Result<(), NetworkError>>;

    /// Removes our route for one destination; it being gone already is success.
    fn remove_route(&self, net: Ipv4Net) -> BoxFuture<'_, Result<(), NetworkError>>;
}

/// The kernel of the network namespace this process runs in.
#[derive(Debug, Clone)]
pub struct Linux {
    netlink: Netlink,
}

impl Linux {
    /// Connects to the namespace of the calling thread. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The netlink socket cannot be opened.
    pub fn connect() -> Result<Self, NetworkError> {
        Ok(Self { netlink: Netlink::connect().map_err(io_failed("open a netlink socket"))? })
    }
}

impl Kernel for Linux {
    fn links(&self) -> Result<Links, NetworkError> {
        self.netlink.links().map_err(io_failed("list the links"))
    }

    fn prepare_node<'a>(
        &'a self,
        uplink: &'a str,
        gateway: Ipv4Addr,
    ) -> BoxFuture<'a, Result<u32, NetworkError>> {
        Box::pin(async move {
            let links = self.links()?;
            let index = find(&links, uplink)?;
            let loopback = find(&links, "lo")?;
            sysctl::prepare_node(uplink)?;
            self.netlink.bring_up(loopback, None, None).await?;
            self.netlink.ensure_address(loopback, gateway).await?;
            Ok(self.netlink.mtu(index).await?)
        })
    }

    fn open_tap(&self, tap: &str) -> Result<Option<OwnedFd>, NetworkError> {
        holdfast_sys::tap::open(tap).map(Some).map_err(io_failed(format!("create tap {tap}")))
    }

    fn prepare_tap<'a>(&'a self, wire: &'a Wire) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(async move {
            sysctl::prepare_tap(&wire.tap)?;
            self.netlink.bring_up(wire.link, Some(GATEWAY_MAC), Some(wire.mtu)).await?;
            Ok(self.netlink.set_neighbour(wire.link, wire.address, wire.mac).await?)
        })
    }

    fn serve_dhcp(
        &self,
        tap: &str,
        gateway: Ipv4Addr,
        lease: dhcp::Lease,
    ) -> Result<BoxFuture<'static, ()>, NetworkError> {
        let sockets =
            dhcp::Sockets::open(tap, gateway).map_err(io_failed(format!("serve DHCP on tap {tap}")))?;
        let tap = tap.to_owned();
        Ok(Box::pin(async move {
            if let Err(error) = dhcp::serve(sockets, lease).await {
                tracing::debug!(%tap, %error, "DHCP ended; the tap is gone");
            }
        }))
    }

    fn note_packets(
        &self,
        tap: u32,
        guest: Ipv4Addr,
    ) -> BoxFuture<'_, Result<Option<InFlight>, NetworkError>> {
        Box::pin(async move {
            let failed = || io_failed(format!("note the packets for {guest}"));
            let heard = holdfast_sys::packet::listen(tap, guest).map_err(failed())?;
            let (again, name) = holdfast_sys::tap::open_tun(in_flight::DEVICE_PREFIX).map_err(failed())?;
            sysctl::prepare_again(&name)?;
            self.netlink.bring_up(find(&self.links()?, &name)?, None, None).await?;
            InFlight::note(heard, again).map(Some).map_err(failed())
        })
    }

    fn load_filter<'a>(
        &'a self,
        table: &'a str,
        gateway: Ipv4Addr,
        guests: &'a [filter::Guest],
    ) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(async move { Ok(filter::load(table, &filter::rules(table, gateway, guests)).await?) })
    }

    fn remove_link(&self, link: u32) -> BoxFuture<'_, Result<(), NetworkError>> {
        Box::pin(async move { Ok(self.netlink.remove_link(link).await?) })
    }

    fn our_routes<'a>(&'a self, links: &'a Links) -> BoxFuture<'a, Result<Vec<OurRoute>, NetworkError>> {
        Box::pin(async move { Ok(self.netlink.our_routes(links).await?) })
    }

    fn set_route(
        &self,
        net: Ipv4Net,
        target: Target,
        source: Option<Ipv4Addr>,
    ) -> BoxFuture<'_, Result<(), NetworkError>> {
        Box::pin(async move { Ok(self.netlink.set_route(net, &target, source).await?) })
    }

    fn remove_route(&self, net: Ipv4Net) -> BoxFuture<'_, Result<(), NetworkError>> {
        Box::pin(async move { Ok(self.netlink.remove_route(net).await?) })
    }
}
