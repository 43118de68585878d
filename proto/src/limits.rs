//! Every bound of the crate, each with its reason or source. A queue without a line here is a
//! defect (I5).

use std::time::Duration;

/// Control port (QUIC over UDP) unless configured otherwise.
pub const CONTROL_PORT: u16 = 7760;
/// Data port (sealed frames over UDP) unless configured otherwise.
pub const DATA_PORT: u16 = 7761;

/// Plain frames over UDP (RFC 7348 section 5, IANA); open only while a plain network is on the
/// host.
pub const PLAIN_PORT: u16 = 4789;

/// Default MTU of a network: fits a 1500-byte underlay with either IP version (overhead 82 or 102
/// bytes).
pub const DEFAULT_MTU: u16 = 1390;
/// Default MTU of a plain network: the same, where the overhead is 50 or 70 bytes.
pub const DEFAULT_PLAIN_MTU: u16 = 1430;
/// Smallest MTU of a network: IPv6 needs it (RFC 8200 section 5).
pub const MIN_MTU: u16 = 1280;
/// Largest MTU of a network: a 9000-byte underlay less the IPv6 overhead, with room for one VLAN
/// tag.
pub const MAX_MTU: u16 = 8894;
/// Largest inner Ethernet frame of one packet: [`MAX_MTU`] + Ethernet header + VLAN tag.
pub const MAX_FRAME: usize = MAX_MTU as usize + 18;

/// Frames that wait for a session with one peer; the oldest goes first. 128 is WireGuard's figure.
pub const STAGED_FRAMES: usize = 128;

/// Peers of one node: each has a handshake under way and five keys at most.
pub const SESSION_PEERS: usize = 4096;
/// Handshakes, keepalives and staged frames that wait to be sent; what does not fit is lost as on
/// any link.
pub const SESSION_TRANSMITS: usize = 8192;
/// Session events that wait to be read; the oldest goes first.
pub const SESSION_EVENTS: usize = 4096;
/// Timestamps of peers that were removed, kept against replays for when they are set again.
pub const SESSION_STAMPS: usize = 4096;

/// Broadcast, unknown-unicast and multicast frames that one network accepts from this host in a
/// second, unless the network says otherwise.
pub const FLOOD_PER_SECOND: u32 = 1000;
/// How many such frames may come at once: a fifth of that, whatever it is.
pub const FLOOD_BURST: u32 = FLOOD_PER_SECOND / FLOOD_BURST_PART;
/// See [`FLOOD_BURST`].
pub const FLOOD_BURST_PART: u32 = 5;
/// How often an endpoint is told in a second that its packets are too large; each flow needs it
/// once (RFC 4443 section 2.4 f).
pub const ICMP_PER_SECOND: u32 = 100;
/// How often at once.
pub const ICMP_BURST: u32 = 20;
/// Such frames that one endpoint may send in a second, unless the network says otherwise: a third
/// of the network's, so that no one takes all.
pub const FLOOD_ENDPOINT_PER_SECOND: u32 = 300;
/// How many of them may come at once: a third of that, whatever it is.
pub const FLOOD_ENDPOINT_BURST: u32 = FLOOD_ENDPOINT_PER_SECOND / FLOOD_ENDPOINT_BURST_PART;
/// See [`FLOOD_ENDPOINT_BURST`].
pub const FLOOD_ENDPOINT_BURST_PART: u32 = 3;
/// The most that a network may say of either: each frame is copied to every host.
pub const FLOOD_MOST: u32 = 1_000_000;

/// Addresses of one network of which a node remembers with which MAC it announced them; when there
/// are more it forgets all.
pub const ANNOUNCED: usize = 65_536;

/// Longest name of a node, network, endpoint or service: one DNS label (RFC 1035 section 2.3.4).
pub const NAME_LEN: usize = 63;
/// Longest other name of an endpoint: a name in DNS with its dots (RFC 1035 section 2.3.4), less
/// room for the network's.
pub const ALIAS_LEN: usize = 189;
/// Longest signed record; see `gossip`, where larger values would starve smaller ones.
pub const RECORD_LEN: usize = 1024;

/// No clock of objects follows a stamp that is further ahead of the local wall clock than this.
pub const HLC_AHEAD: Duration = Duration::from_secs(60);
/// A host whose clock is further from the issuer's than this is not let in: certificates and tokens
/// would mean other times there.
pub const CLOCKS_APART: Duration = Duration::from_secs(300);
/// Clocks that are further apart than this are told of: a host that keeps its time is within a
/// second.
pub const CLOCKS_TOLD: Duration = Duration::from_secs(10);
/// A wall clock that leaps ahead by this shows that the host stood still, for about as long as
/// others wait before a node that is silent is dead. A time server corrects less of a host that
/// ran.
pub const STOOD_STILL: Duration = Duration::from_secs(3);
/// How often a node gives addresses of one subnet to one other node without a pause. Each time it
/// is about half of what it has, so that these are nearly all.
pub const BLOCKS_AT_ONCE: u32 = 12;
/// Address blocks in one such gift. One is enough unless the free addresses lie in pieces.
pub const BLOCKS_PER_GIFT: usize = 8;
/// Pause after which it gives once more: each block is an object that the mesh keeps.
pub const BLOCK_EVERY: Duration = Duration::from_secs(10);
/// How long a released address rests before it is given again: longer than any neighbour cache
/// keeps it.
pub const ADDRESS_QUARANTINE: Duration = Duration::from_secs(60);
/// How long the owner's `gone` record is kept.
pub const GONE_KEPT: Duration = Duration::from_secs(600);
/// Addresses of one kind in one claim: two IP versions and a second link for each.
pub const CLAIM_ADDRESSES: usize = 4;
/// Other names of one endpoint: more do not fit into [`RECORD_LEN`].
pub const CLAIM_NAMES: usize = 8;

/// Services whose checks one claim tells of.
pub const CLAIM_CHECKS: usize = 16;

/// Longest signed mesh object: a network of 800 nodes whose two pools are split among all of them.
pub const OBJECT_LEN: usize = 128 * 1024;
/// Mesh objects in all: 4096 networks, 800 members, and the address blocks that they gave each
/// other.
pub const OBJECTS: usize = 16_384;
/// Bytes of all mesh objects: each node keeps them in memory and on disk.
pub const OBJECTS_LEN: usize = 64 * 1024 * 1024;
/// Of both, what only members' own certificates may use: nobody who fills the rest keeps a newcomer
/// out.
pub const OBJECTS_OF_MEMBERS: usize = 1024;
/// See [`OBJECTS_OF_MEMBERS`].
pub const OBJECTS_OF_MEMBERS_LEN: usize = 8 * 1024 * 1024;
/// Of both, what only address blocks that were taken back from removed nodes may use. They may use
/// no more: one that cut its addresses into thousands of blocks before it was removed fills nothing
/// else, and keeps no other from being removed.
pub const OBJECTS_OF_RECLAIMS: usize = OBJECTS / 4;
/// See [`OBJECTS_OF_RECLAIMS`].
pub const OBJECTS_OF_RECLAIMS_LEN: usize = 4 * 1024 * 1024;
/// Mesh objects whose last version is by one author: a quarter, so that no one fills the set. The
/// author of a network that has many static addresses signs one for each.
pub const OBJECTS_PER_AUTHOR: usize = OBJECTS / 4;
/// Bytes of them.
pub const OBJECTS_PER_AUTHOR_LEN: usize = OBJECTS_LEN / 4;
/// How long a deleted network is remembered: longer than a certificate lives. Who slept through all
/// of it cannot come back with the network, because nobody lets it in without joining anew.
pub const DELETED_KEPT: Duration = Duration::from_secs(31 * 24 * 3600);
/// Entries of one page of a digest of the mesh objects: about 150 KiB as JSON.
pub const DIGEST_ENTRIES: usize = 2048;
/// Bytes of mesh objects in one message, unless a single one is longer.
pub const OBJECT_BATCH_LEN: usize = 256 * 1024;
/// Subnets of one network: a few of either IP version.
pub const NETWORK_SUBNETS: usize = 8;
/// Subnets of one network with those that were added to it: each frame's source is compared with
/// them.
pub const NETWORK_SUBNETS_ALL: usize = 32;
/// Addresses of one subnet that are given to nobody because something else has them.
pub const SUBNET_AUX: usize = 64;
/// Name servers of one network, as many as libc asks.
pub const NETWORK_DNS: usize = 3;
/// Static VTEPs of one plain network: each gets a copy of every broadcast.
pub const NETWORK_VTEPS: usize = 64;
/// MAC addresses behind the static VTEPs of one plain network that are known at once: a bridge's
/// worth of machines. More of them are flooded to, not learned: who makes addresses up pushes
/// nobody out.
pub const LEARNED_STATIONS: usize = 1024;
/// The most that a network may say of it: a learned address is some 100 bytes on every host.
pub const LEARNED_STATIONS_MOST: u32 = 65_536;
/// How long a learned address is known without a frame from it: the default of bridges (IEEE 802.1Q
/// section 8.8.3) and of the kernel's vxlan device.
pub const LEARNED_AGE: Duration = Duration::from_secs(300);
/// Flows to services that a node remembers, 152 bytes each. A quarter may be half-open, and a
/// quarter may be of one source.
pub const SERVICE_FLOWS: u32 = 131_072;
/// Backends of one service: more have less than 64 places each in its table of choices.
pub const SERVICE_BACKENDS: usize = 1024;
/// The largest weight of one.
pub const SERVICE_WEIGHT: u8 = 100;
/// Services of one network that a node carries, the oldest first: each has a table of 33 to 131 kB.
pub const SERVICES_OF_NETWORK: usize = 256;
/// Closed services of one network whose clients are refused at once, the latest: a client asks at
/// the address of one for minutes, or as long as it remembers who had it.
pub const GONE_SERVICES: usize = 256;
/// Clients of a service with `--sticky` of which a node remembers the backend, 8 bytes each. A
/// power of two.
pub const STICKY_CLIENTS: usize = 16_384;
/// For how many seconds at most a client keeps its backend: a day, as in Kubernetes.
pub const STICKY_SECONDS: u32 = 86_400;
/// Ports of one service.
pub const SERVICE_PORTS: usize = 64;
/// Prefixes of clients that a published port is for, and as many that it is not for: each is a rule
/// of the hosts, or a part of one.
pub const CLIENT_PREFIXES: usize = 32;
/// Labels of one network.
pub const NETWORK_LABELS: usize = 64;

/// Questions of one client that are answered in a second, unless the network says otherwise: a
/// tenth of what one core can.
pub const DNS_PER_SECOND: u32 = 10_000;
/// Questions of one client that the upstreams are asked in a second, unless the network says
/// otherwise; the host's name server is not a sandbox's to flood.
pub const DNS_FORWARDS_PER_SECOND: u32 = 500;
/// The most that a network may say of either.
pub const DNS_MOST: u32 = 1_000_000;
/// Seconds that an answer about a name of ours may be kept.
pub const DNS_TTL: u32 = 5;
/// Longest reply over UDP: it crosses every IPv6 path in one piece (dnsflagday.net/2020).
pub const DNS_UDP_LEN: u16 = 1232;
/// Longest question: 255 bytes of name, and options of EDNS.
pub const DNS_QUERY_LEN: usize = 1232;
/// Seconds that an upstream's answer is kept at most.
pub const DNS_CACHED: u32 = 3600;
/// Seconds that an upstream's refusal is kept at most: it may be mended by then.
pub const DNS_CACHED_NEGATIVE: u32 = 30;
