//! Every bound of the crate, each with its reason (I5).

use std::time::Duration;

/// Longest message of chitchat: one UDP datagram over IPv4.
pub const MESSAGE_LEN: usize = 65_507;
/// A message's content once expanded. Honest ones compress to a tenth at best; a forged one of
/// [`MESSAGE_LEN`] could expand to 186 MiB.
pub const EXPANDED_LEN: usize = 4 * 1024 * 1024;
/// Lives of nodes that gossip knows at once, dead ones of the last minutes included. Their digest,
/// 79 bytes each if nothing compresses, must leave room in a message: chitchat panics otherwise.
pub const LIVES: usize = 800;
/// Lives of one node at once: an agent in a crash loop does not crowd out the others.
pub const LIVES_PER_NODE: usize = 16;
/// Longest key: ours have 35 characters.
pub const KEY_LEN: usize = 128;
/// Longest value: a signed record.
pub const VALUE_LEN: usize = vxmesh_proto::limits::RECORD_LEN;
/// Keys of one life of one node: 1024 endpoints that were all replaced a few times in ten minutes.
pub const KEYS_PER_LIFE: usize = 4096;
/// Keys of all nodes: as many rows as a node's tables may have.
pub const KEYS: usize = 262_144;
/// Largest version of a key: chitchat adds to its own without a check.
pub const VERSION: u64 = 1 << 48;
/// How far one message may move a node's version.
pub const VERSION_JUMP: u64 = 1 << 32;
/// A peer cannot have seen our heartbeat this far beyond where it stood at the last tick.
pub const HEARTBEAT_SLACK: u64 = 1 << 20;

/// Records of one owner in the directory.
pub const RECORDS_PER_OWNER: usize = KEYS_PER_LIFE;
/// Records that wait for their owner's key; the oldest goes first. One node's worth.
pub const PARKED: usize = 4096;
/// Records in one push.
pub const PUSH: usize = 4096;

/// A peer that sent something this many intervals ago is not dead, whatever its heartbeats say.
pub const HEARD_INTERVALS: u32 = 8;
/// A tick that comes this late means that this node was starved: it judges nobody for a while.
pub const STARVED: Duration = Duration::from_secs(1);
/// For how long it judges nobody after that: others need a few intervals to be heard again.
pub const FREEZE_INTERVALS: u32 = 10;
/// Members that were not heard of and are called on each tick.
pub const CALLS_PER_TICK: usize = 3;
/// A node whose state is forged again and again starts a new life no more often than this.
pub const RENEWAL_EVERY: Duration = Duration::from_secs(30);
/// How long a dead node stays in chitchat's digests, twice over.
pub const DEAD_GRACE: Duration = Duration::from_secs(600);
/// How long chitchat keeps tombstones: longer than most partitions, because it resets a node's
/// whole state on peers that missed one.
pub const TOMBSTONES_KEPT: Duration = Duration::from_secs(3600);
