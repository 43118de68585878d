//! Why a frame, a datagram or a question was not answered or delivered: [`DropReason`], one for all
//! layers (I4). Whoever refuses something names one of these and counts it; `docs/operations.md`
//! says of each what it means to who runs the host.

use std::fmt;

use thiserror::Error;

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $reason:ident = $text:literal, $kind:ident;)*) => {
        /// Why something was not delivered. Its text names a counter: it is never changed.
        #[derive(Clone, Copy, Debug, Error, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason {
            $($(#[$doc])* $reason,)*
        }

        impl DropReason {
            /// All reasons, each at the place of its number (`reason as usize`).
            pub const ALL: &'static [Self] = &[$(Self::$reason,)*];

            /// The name in counters and in `vxmesh drops`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$reason => $text,)*
                }
            }

            /// Whether a healthy network shows this too: the frame was needless, and nobody misses
            /// it.
            #[must_use]
            pub const fn is_benign(self) -> bool {
                match self {
                    $(Self::$reason => drop_reasons!(@$kind),)*
                }
            }
        }
    };
    (@benign) => { true };
    (@lost) => { false };
}

// The frames of networks: the steps of `path`, and the kernel's rules that mirror them.
drop_reasons! {
    /// Shorter than an Ethernet header.
    Runt = "runt", lost;
    /// Larger than the network's MTU.
    TooBig = "too_big", lost;
    /// It has a VLAN tag.
    VlanUnsupported = "vlan_unsupported", lost;
    /// It is an LLC frame: its type field is a length.
    LlcUnsupported = "llc_unsupported", lost;
    /// The lengths of its segments or its checksum lie outside of it.
    BadOffload = "bad_offload", lost;
    /// To a group that bridges must not forward (01:80:c2:00:00:0x): spanning tree, LLDP, pause.
    ReservedGroup = "reserved_group", benign;
    /// From the gateway's MAC, which is on every host and stays there.
    GatewaySource = "gateway_source", benign;
    /// From a MAC that no local endpoint has.
    SourceUnknown = "source_unknown", lost;
    /// From a MAC that the node that sent it does not own in this network.
    SourceNotOwned = "source_not_owned", lost;
    /// From an IP address that the endpoint does not have.
    IpSpoofed = "ip_spoofed", lost;
    /// ARP for an address or MAC that the sender does not have.
    ArpSpoofed = "arp_spoofed", lost;
    /// Neighbour discovery for an address or MAC that the sender does not have.
    NdSpoofed = "nd_spoofed", lost;
    /// The IP header contradicts the frame.
    MalformedIp = "malformed_ip", lost;
    /// Not ARP for IPv4 over Ethernet.
    MalformedArp = "malformed_arp", lost;
    /// Neighbour discovery that every receiver must ignore.
    MalformedNd = "malformed_nd", lost;
    /// An endpoint answers as a DHCP server.
    DhcpServer = "dhcp_server", lost;
    /// An endpoint asks for an address: the network gives addresses another way.
    DhcpClient = "dhcp_client", benign;
    /// An endpoint says that it is a router.
    RouterAdvertisement = "router_advertisement", lost;
    /// An endpoint asks for routers: there is only the gateway, which is on this host.
    RouterSolicitation = "router_solicitation", benign;
    /// An endpoint tells others to take another way.
    Redirect = "redirect", lost;
    /// An address is announced that the tables have told everybody already.
    Announcement = "announcement", benign;
    /// Asks for the gateway or for an endpoint of this host, which answer for themselves.
    AnsweredLocally = "answered_locally", benign;
    /// Asks for an address that nobody in the network has.
    NeighborUnknown = "neighbor_unknown", lost;
    /// To a MAC that nobody in the network has.
    FdbUnknown = "fdb_unknown", lost;
    /// To the gateway or an endpoint of this host: the bridge delivers it.
    LocalDestination = "local_destination", benign;
    /// From one endpoint to another, in a network that keeps them apart.
    Isolated = "isolated", lost;
    /// Of a flow that sends more than this host can carry, while others want their share.
    QueueFull = "queue_full", lost;
    /// To everybody, where nobody else is.
    NoMembers = "no_members", benign;
    /// To everybody, more often than the endpoint or the network may.
    FloodLimited = "flood_limited", lost;
    /// What was sealed is no VXLAN packet.
    MalformedVxlan = "malformed_vxlan", lost;
    /// What was sealed is no list of packets although it says so.
    MalformedAggregate = "malformed_aggregate", lost;
    /// Of a network that this host does not have.
    VniUnknown = "vni_unknown", lost;
    /// From a node that has no part in the network.
    NotAMember = "not_a_member", lost;
    /// In clear, of an encrypted network.
    SealedVni = "sealed_vni", lost;
    /// In clear, from an address that is no VTEP of the network.
    UnknownVtep = "unknown_vtep", lost;
    /// From a static VTEP, with a MAC that an endpoint or the gateway has.
    VtepSourceTaken = "vtep_source_taken", lost;
    /// To a member that has no address of an IP version that this host has.
    VtepUnreachable = "vtep_unreachable", lost;
    /// Of a plain network, while the host's plain port is not open.
    PlainClosed = "plain_closed", lost;
    /// A router marked it as congested, and its transport does not know of marks: who marked it
    /// would have dropped it (RFC 6040).
    CongestedNotEct = "congested_not_ect", lost;
    /// To a MAC that no endpoint of this host has.
    NotLocal = "not_local", lost;
    /// Out of the mesh, with an address that only the network knows: the kernel calls it no part of
    /// a connection (a late RST, a segment outside of the window), and so does not rewrite it.
    InnerSource = "inner_source", benign;
    /// To the outside, by the router of another node: that leads nobody out but who answers a
    /// client of a published port.
    NotARouter = "not_a_router", lost;
    /// To a service, on a port that it does not have.
    ServicePort = "service_port", lost;
    /// To a service that has no backend for new flows, or in a connection whose backend is not one
    /// of its backends any more.
    NoBackend = "no_backend", lost;
    /// To a backend of which this node does not know at the moment where it is.
    BackendUnknown = "backend_unknown", lost;
    /// To a service, in a connection that nobody here knows: it ended, or began before the agent.
    FlowUnknown = "flow_unknown", lost;
    /// To a service, in a flow that other threads begin and end at this moment.
    FlowBusy = "flow_busy", lost;
    /// Of a backend that has a connection with the client's port already: the new flow gets
    /// another.
    FlowClash = "flow_clash", benign;
    /// To a service, and no room is left for another flow, or none for one more of this client.
    FlowTableFull = "flow_table_full", lost;
    /// The kernel did not take it at the TAP, or the TAP went while it waited to leave.
    TapError = "tap_error", lost;

    // What the kernel lost at the interfaces of a network's namespace, which the agent never sees.

    /// For another host, and the agent did not read the TAP fast enough.
    TapFull = "tap_full", lost;
    /// From a sandbox: larger than its port, or too many wait.
    PortOverrun = "port_overrun", lost;
    /// For a sandbox that does not take it.
    SandboxOverrun = "sandbox_overrun", lost;
    /// For the host itself, or from it.
    NodeOverrun = "node_overrun", lost;
    /// For the outside, or from there.
    UplinkOverrun = "uplink_overrun", lost;

    // Datagrams between hosts: the sessions, and the sockets below them.

    /// The datagram is too short, too long, or not of its type's length.
    BadLength = "bad_length", lost;
    /// No message type that this side handles.
    BadType = "bad_type", lost;
    /// A wire version that this side does not speak.
    BadVersion = "bad_version", lost;
    /// The sender of a handshake message does not know whom it talks to.
    BadMac1 = "bad_mac1", lost;
    /// A cookie that was never given.
    BadMac2 = "bad_mac2", lost;
    /// A cookie reply although nothing was refused for want of one.
    UnsolicitedCookie = "unsolicited_cookie", lost;
    /// No key has this receiver index.
    UnknownIndex = "unknown_index", lost;
    /// The handshake is from a static key that belongs to no member.
    UnknownPeer = "unknown_peer", lost;
    /// The mesh secret of this epoch is not, or no longer, known.
    UnknownEpoch = "unknown_epoch", lost;
    /// The suite is not the one that the certified records of both nodes demand.
    BadSuite = "bad_suite", lost;
    /// An initiation whose timestamp is not newer than the newest one of its sender.
    ReplayedHandshake = "replayed_handshake", lost;
    /// More initiations of one peer than it has reason to send.
    HandshakeFlood = "handshake_flood", lost;
    /// The AEAD tag is wrong.
    AuthFailed = "auth_failed", lost;
    /// A key agreement gave zero: the other side sent a point of low order.
    ZeroDh = "zero_dh", lost;
    /// The counter was accepted before, or lies behind the window.
    Replay = "replay", lost;
    /// The key is too old or has carried too many packets.
    KeyExpired = "key_expired", lost;
    /// The peer was removed.
    PeerRemoved = "peer_removed", lost;
    /// Frames waited for a session that did not come, or too many of them did.
    NoSession = "no_session", lost;
    /// The host gave no random bytes.
    NoEntropy = "no_entropy", lost;
    /// Handshakes and wishes for one come faster than the session thread works them off.
    SessionQueueFull = "session_queue_full", lost;
    /// Larger than its path.
    UnderlayTooBig = "underlay_too_big", lost;
    /// There is no route or no link, or nobody answers for the address.
    UnderlayUnreachable = "underlay_unreachable", lost;
    /// The host's buffers are full.
    UnderlayFull = "underlay_full", lost;
    /// It came, and the agent did not take it in time.
    UnderlayOverrun = "underlay_overrun", lost;
    /// The host did not take it for another reason.
    UnderlayError = "underlay_error", lost;

    // Questions to the name server.

    /// No question that can be read.
    DnsMalformed = "dns_malformed", lost;
    /// An answer, or another operation than a query.
    DnsNotAQuery = "dns_not_a_query", lost;
    /// About a name, or of a kind, that is not answered here.
    DnsRefused = "dns_refused", lost;
    /// From an address that is no client's.
    DnsStranger = "dns_stranger", lost;
    /// A client asks more often than it may.
    DnsRate = "dns_rate", lost;
    /// Too many questions of the client wait for an answer.
    DnsForwardsFull = "dns_forwards_full", lost;
    /// A client asks more often for names of others than it may.
    DnsForwardRate = "dns_forward_rate", lost;
    /// An answer that no upstream was asked for.
    DnsForeignAnswer = "dns_foreign_answer", lost;
    /// No upstream answered.
    DnsUpstreamFailed = "dns_upstream_failed", lost;
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn numbers_are_places_and_names_are_snake_case() {
        let mut names = BTreeSet::new();
        for (at, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at);
            assert!(names.insert(reason.as_str()), "{reason} twice");
            assert!(
                reason
                    .as_str()
                    .bytes()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_'),
                "{reason}"
            );
        }
        assert!(DropReason::Announcement.is_benign());
        assert!(!DropReason::IpSpoofed.is_benign());
    }
}
