//! The node's network against the real kernel: each test has a network namespace of its own that
//! vanishes with its thread. The test plays the guest: it reads and writes the tap's frames.
//! Needs root and /dev/net/tun, as the agent does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Message, MessageType};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use holdfast_agent::network::kernel::{Kernel as _, Linux};
use holdfast_agent::network::names::Mac;
use holdfast_agent::network::plan::Vm;
use holdfast_agent::network::{GuestNic, Network, NetworkError, Settings};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 66, 10, 14);
const NODE: Ipv4Addr = Ipv4Addr::new(10, 199, 0, 1);
const OTHER_NODE: Ipv4Addr = Ipv4Addr::new(10, 199, 0, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GUEST_MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 0x0e]);
const GATEWAY_MAC: [u8; 6] = [0xee; 6];
const UID: &str = "9f86d081-884c-4d63-a1a7-93d2e6b5f0ab";
const TAP: &str = "vm9f86d081";
/// Bytes of the virtio-net header before every frame of the tap.
const VNET: usize = 10;

/// Runs a test as a node: own network namespace, uplink `eth0` with the node's address.
fn on_a_node<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    std::thread::spawn(move || {
        holdfast_sys::namespace::unshare_network().expect("root is needed for a network namespace");
        ip("link add eth0 type veth peer name peer0");
        ip("addr add 10.199.0.1/24 dev eth0");
        ip("link set eth0 up");
        ip("link set peer0 up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    })
    .join()
    .unwrap();
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn routes() -> Vec<String> {
    ip("-4 route show proto 72").lines().map(|line| line.trim().to_owned()).collect()
}

fn settings() -> Settings {
    Settings {
        node: "a".into(),
        node_address: NODE,
        uplink: "eth0".into(),
        gateway: GATEWAY,
        table: "holdfast_test".into(),
        dns: vec![],
        pools: BTreeSet::new(),
    }
}

async fn start() -> Result<Network, NetworkError> {
    Network::start(settings(), Arc::new(Linux::connect()?)).await
}

fn nic() -> GuestNic {
    GuestNic {
        instance_uid: UID.into(),
        pod_uid: "p".into(),
        mac: GUEST_MAC,
        address: GUEST,
        host_name: "linux-vm".into(),
    }
}

fn vm(node: &str, moving: bool) -> Vm {
    Vm { uid: UID.into(), address: GUEST, node: Some(node.into()), moving }
}

fn nodes() -> BTreeMap<String, Ipv4Addr> {
    [("a".to_owned(), NODE), ("b".to_owned(), OTHER_NODE)].into()
}

/// The guest's end of the wire.
struct Guest(File);

impl Guest {
    fn new(tap: OwnedFd) -> Self {
        Self(File::from(tap))
    }

    fn send(&mut self, frame: &[u8]) {
        let mut bytes = vec![0; VNET];
        bytes.extend_from_slice(frame);
        self.0.write_all(&bytes).unwrap();
    }

    /// The first frame that `wanted` picks something from, within five seconds.
    async fn receive<T>(&mut self, what: &str, wanted: impl Fn(&[u8]) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut buffer = [0; 4096];
        while Instant::now() < deadline {
            match self.0.read(&mut buffer) {
                Ok(length) if length > VNET => {
                    if let Some(found) = wanted(&buffer[VNET..length]) {
                        return found;
                    }
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(error) => panic!("reading the tap: {error}"),
            }
        }
        panic!("the guest did not receive {what}");
    }

    async fn ask_dhcp(&mut self, kind: MessageType, address: Option<Ipv4Addr>) -> Message {
        let unset = Ipv4Addr::UNSPECIFIED;
        let mut request = Message::new_with_id(99, unset, unset, unset, unset, &GUEST_MAC.0);
        request.opts_mut().insert(DhcpOption::MessageType(kind));
        if let Some(address) = address {
            request.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
        }
        let mut bytes = Vec::new();
        request.encode(&mut Encoder::new(&mut bytes)).unwrap();
        self.send(&udp_frame([0xff; 6], GUEST_MAC.0, (unset, 68), (Ipv4Addr::BROADCAST, 67), &bytes));
        self.receive("a DHCP reply", |frame| {
            let payload = udp_payload(frame, GATEWAY, 68)?;
            Message::decode(&mut Decoder::new(payload)).ok()
        })
        .await
    }
}

fn udp_frame(
    to: [u8; 6],
    from: [u8; 6],
    source: (Ipv4Addr, u16),
    destination: (Ipv4Addr, u16),
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(to);
    frame.extend(from);
    frame.extend([0x08, 0x00]);
    let total = u16::try_from(28 + payload.len()).unwrap();
    let mut header = vec![0x45, 0];
    header.extend(total.to_be_bytes());
    header.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    header.extend(source.0.octets());
    header.extend(destination.0.octets());
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(header);
    frame.extend(source.1.to_be_bytes());
    frame.extend(destination.1.to_be_bytes());
    frame.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    frame.extend([0, 0]); // no UDP checksum
    frame.extend(payload);
    frame
}

fn udp_payload(frame: &[u8], source: Ipv4Addr, port: u16) -> Option<&[u8]> {
    let is_udp = frame.get(12..14)? == [8, 0] && frame.get(23)? == &17;
    let from = frame.get(26..30)? == source.octets();
    let to = frame.get(36..38)? == port.to_be_bytes();
    (is_udp && from && to).then(|| &frame[42..])
}

fn arp_request(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend([0xff; 6]);
    frame.extend(GUEST_MAC.0);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(GUEST_MAC.0);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

// VL N2 (the guest's half: one address, given by DHCP)
#[test]
fn a_guest_gets_its_address_and_its_gateway() {
    on_a_node(|| async {
        let network = start().await.unwrap();
        let mut guest = Guest::new(network.plug(nic()).await.unwrap().unwrap());

        let offer = guest.ask_dhcp(MessageType::Discover, None).await;
        assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
        assert_eq!(offer.yiaddr(), GUEST);
        let ack = guest.ask_dhcp(MessageType::Request, Some(GUEST)).await;
        assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));
        let nak = guest.ask_dhcp(MessageType::Request, Some(Ipv4Addr::new(10, 66, 10, 99))).await;
        assert_eq!(nak.opts().msg_type(), Some(MessageType::Nak));

        guest.send(&arp_request(GUEST, GATEWAY));
        let gateway = guest
            .receive("the gateway's ARP reply", |frame| {
                (frame[12..14] == [8, 6] && frame[20..22] == [0, 2]).then(|| frame[22..28].to_vec())
            })
            .await;
        assert_eq!(gateway, GATEWAY_MAC);
    });
}

#[test]
fn a_guest_cannot_use_another_address_or_hardware_address() {
    on_a_node(|| async {
        let network = start().await.unwrap();
        let mut guest = Guest::new(network.plug(nic()).await.unwrap().unwrap());
        network.set_world(vec![vm("a", false)], nodes(), None).await.unwrap();
        let service = UdpSocket::bind((NODE, 0)).unwrap();
        service.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let to = (NODE, service.local_addr().unwrap().port());

        let thief = Ipv4Addr::new(10, 66, 10, 15);
        guest.send(&udp_frame(GATEWAY_MAC, GUEST_MAC.0, (thief, 9), to, b"stolen address"));
        guest.send(&udp_frame(GATEWAY_MAC, [2, 0, 0, 0, 0, 1], (GUEST, 9), to, b"stolen hardware address"));
        guest.send(&udp_frame(GATEWAY_MAC, GUEST_MAC.0, (GUEST, 9), to, b"honest"));
        let mut buffer = [0; 64];
        let (length, from) = service.recv_from(&mut buffer).unwrap();
        assert_eq!(std::str::from_utf8(&buffer[..length]).unwrap(), "honest");
        assert_eq!(from.ip(), GUEST);

        // and the way back: the node reaches the guest without asking for its hardware address
        service.send_to(b"answer", (GUEST, 9)).unwrap();
        let answer = guest
            .receive("the node's packet", |frame| {
                assert_ne!(frame[12..14], [8, 6], "nobody asks who has an address");
                udp_payload(frame, NODE, 9).map(<[u8]>::to_vec)
            })
            .await;
        assert_eq!(answer, b"answer");
    });
}

// MM-S7 (one node's share: the route points to the target as soon as it is told, before the API)
#[test]
fn routes_follow_the_guest_on_both_sides_of_a_move() {
    on_a_node(|| async {
        let network = start().await.unwrap();
        let there = format!("10.66.10.14 via {OTHER_NODE} dev eth0");
        let here = format!("10.66.10.14 dev {TAP} scope link src {NODE}");

        network.set_world(vec![vm("b", false)], nodes(), None).await.unwrap();
        assert_eq!(routes(), [there.as_str()]);
        let guest = network.plug(nic()).await.unwrap();
        network.set_world(vec![vm("b", true)], nodes(), None).await.unwrap();
        assert_eq!(routes(), [there.as_str()], "the target is silent before the switch");

        network.hint(GUEST, "a", NODE, (1, 10)).await.unwrap();
        assert_eq!(routes(), [here.as_str()], "switched by the source's word");
        network.hint(GUEST, "b", OTHER_NODE, (1, 9)).await.unwrap();
        assert_eq!(routes(), [here.as_str()], "an older word does not count");
        network.hint(GUEST, "b", OTHER_NODE, (1, 11)).await.unwrap();
        assert_eq!(routes(), [there.as_str()], "switched back after a failure");
        network.hint(GUEST, "a", NODE, (1, 12)).await.unwrap();
        network.set_world(vec![vm("a", false)], nodes(), None).await.unwrap();
        assert_eq!(routes(), [here.as_str()], "flipped in the API");

        drop(guest);
        network.unplug(UID, "p").await.unwrap();
        assert!(routes().is_empty());
        assert!(!ip("-o link show").contains(TAP));
    });
}

/// Packets of a listener, as the UDP payloads in them.
fn heard(listener: &OwnedFd) -> Vec<String> {
    let mut buffer = [0; 4096];
    let mut all = Vec::new();
    while let Ok((length, _)) = holdfast_sys::packet::receive(listener, &mut buffer) {
        let payload = udp_payload(&buffer[VNET..length], NODE, 9).unwrap();
        all.push(String::from_utf8(payload.to_vec()).unwrap());
    }
    all
}

// hypervisor.md §13.3, strategy D.
#[test]
fn packets_that_come_between_the_stop_and_the_switch_of_the_routes_reach_the_target() {
    on_a_node(|| async {
        let network = start().await.unwrap();
        let _guest = network.plug(nic()).await.unwrap();
        network.set_world(vec![vm("a", false)], nodes(), None).await.unwrap();
        ip(&format!("neigh add {OTHER_NODE} lladdr 02:00:00:00:00:02 dev eth0 nud permanent"));
        let links = Linux::connect().unwrap().links().unwrap();
        let uplink = holdfast_sys::packet::listen(links["eth0"], GUEST).unwrap();
        let mut in_flight = network.note_packets(UID).await.unwrap().unwrap();

        // The peer is this node: its own address is the hardest to take in once more.
        let peer = UdpSocket::bind((NODE, 0)).unwrap();
        let send = |text: &str| peer.send_to(text.as_bytes(), (GUEST, 9)).unwrap();
        send("before the stop");
        tokio::time::sleep(Duration::from_millis(5)).await;
        let stopped = holdfast_env::now().as_microsecond();
        tokio::time::sleep(Duration::from_millis(5)).await;
        send("in the gap");
        let long = "in the gap, and long".repeat(60);
        send(&long);
        assert!(heard(&uplink).is_empty(), "the route leads to the tap");
        network.hint(GUEST, "b", OTHER_NODE, (1, 1)).await.unwrap();
        in_flight.pass_on(stopped);
        send("behind the switch");

        let mut all = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(5);
        while all.len() < 3 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
            all.extend(heard(&uplink));
        }
        all.sort();
        assert_eq!(all, ["behind the switch", "in the gap", long.as_str()], "{all:?}");
        drop(in_flight);
        let gone = || !ip("-o link show").contains("hfagain");
        while !gone() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(gone(), "the device goes with the move");
    });
}

#[test]
fn a_restarted_agent_adopts_live_taps_and_removes_leftovers() {
    on_a_node(|| async {
        let first = start().await.unwrap();
        let guest = first.plug(nic()).await.unwrap().unwrap();
        let stale = GuestNic {
            instance_uid: "00000000-0000".into(),
            address: Ipv4Addr::new(10, 66, 10, 15),
            ..nic()
        };
        let leftover = first.plug(stale).await.unwrap();
        first.set_world(vec![vm("a", false)], nodes(), None).await.unwrap();
        drop(first);
        assert!(ip("-o link show").contains("vm00000000"));
        ip("route add 10.66.10.77 via 10.199.0.9 proto 72");
        ip("route add 10.66.10.78 via 10.199.0.9");

        let second = start().await.unwrap();
        second.adopt(nic()).await.unwrap();
        second.set_world(vec![vm("a", false)], nodes(), None).await.unwrap();
        second.remove_leftovers(&BTreeSet::new()).await.unwrap();
        assert_eq!(routes(), [format!("10.66.10.14 dev {TAP} scope link src {NODE}")]);
        assert!(ip("route show").contains("10.66.10.78"), "somebody else's route stays");
        assert!(!ip("-o link show").contains("vm00000000"), "the stale tap is gone");
        let mut guest = Guest::new(guest);
        let offer = guest.ask_dhcp(MessageType::Discover, None).await;
        assert_eq!(offer.yiaddr(), GUEST, "the adopted guest is served");
        drop(leftover);
    });
}

#[test]
fn a_word_that_comes_before_the_api_was_read_takes_no_other_route_away() {
    on_a_node(|| async {
        ip("route add 10.66.10.77 via 10.199.0.9 proto 72");
        let network = start().await.unwrap();
        network.hint(GUEST, "b", OTHER_NODE, (1, 1)).await.unwrap();
        assert_eq!(routes(), ["10.66.10.14 via 10.199.0.2 dev eth0", "10.66.10.77 via 10.199.0.9 dev eth0"]);
        network.set_world(vec![vm("b", false)], nodes(), None).await.unwrap();
        assert_eq!(routes(), ["10.66.10.14 via 10.199.0.2 dev eth0"], "the API knows no 10.66.10.77");
    });
}

#[test]
fn a_second_plug_of_a_live_guest_is_refused() {
    on_a_node(|| async {
        let network = start().await.unwrap();
        let _guest = network.plug(nic()).await.unwrap();
        let refused = network.plug(nic()).await.unwrap_err();
        assert!(refused.to_string().contains(TAP), "{refused}");
    });
}
