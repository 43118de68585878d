//! Every bound of the control plane with its reason, and the limit on joins.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

/// Connection attempts that wait for a decision; each holds a few KiB that a stranger sent.
pub(super) const INCOMING: usize = 64;
/// Bytes that strangers may have us keep before the handshake is done.
pub(super) const INCOMING_BYTES: u64 = 1 << 20;
/// A handshake that takes longer than this is given up.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections of members: a mesh of that size, each pair once, and some that are being replaced.
pub(super) const MEMBERS: usize = 4096;
/// Callers without a certificate at one time.
pub(super) const ANONYMOUS: usize = 32;
/// How long such a caller may stay: one join, forwarded over a slow path.
pub(super) const ANONYMOUS_STAY: Duration = Duration::from_secs(20);
/// Requests of one peer at one time. The tables of a node need a handful.
pub(super) const STREAMS: u32 = 32;
/// One-way messages of one peer at one time.
pub(super) const ONE_WAY_STREAMS: u32 = 64;
/// A connection without a sign of life for this long is dead.
pub(super) const IDLE: Duration = Duration::from_secs(30);
/// A quiet connection is proven at this pace.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How often a connection is looked at for answers.
pub(super) const PROBE: Duration = Duration::from_secs(1);
/// A connection on which nothing that was sent is acknowledged for this long is broken, though the
/// other side may be heard: a cut in one direction. QUIC itself notices only silence.
pub(super) const UNANSWERED: Duration = Duration::from_secs(3);
/// Bytes of one stream under way: the largest request.
pub(super) const STREAM_WINDOW: u32 = 1 << 20;
/// Bytes of one connection under way, in each direction.
pub(super) const WINDOW: u32 = 4 << 20;
/// Bytes of datagrams that wait inside QUIC, in each direction: 64 of the largest gossip messages'
/// pieces.
pub(super) const DATAGRAM_BYTES: usize = 256 << 10;
/// A one-way message that a peer does not take for this long is dropped.
pub(super) const SEND: Duration = Duration::from_secs(5);
/// A request whose sender stops in the middle is given up.
pub(super) const RECEIVE: Duration = Duration::from_secs(10);
/// Gossip messages that wait for one peer: some rounds of gossip; an older one is worth nothing.
pub(super) const GOSSIP_QUEUE: usize = 64;
/// Pushes that wait for one peer; what is lost comes with gossip.
pub(super) const PUSH_QUEUE: usize = 1024;
/// First pause between attempts to dial, and its largest.
pub(super) const REDIAL: Duration = Duration::from_millis(100);
/// See [`REDIAL`].
pub(super) const REDIAL_MAX: Duration = Duration::from_secs(5);
/// Two connections of one pair live side by side for at most this long.
pub(super) const CONVERGE: Duration = Duration::from_secs(5);
/// The loser of two connections is closed after this long: its requests have come home.
pub(super) const DRAIN: Duration = Duration::from_secs(2);

/// Refused certificates that the log tells of, per minute: enough to see who knocks, too few to
/// fill a disk.
const TOLD: u32 = 10;

/// How many failed joins are served: a correct one costs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinLimits {
    /// From one IPv4 address or IPv6 /64, per minute.
    pub per_source: u32,
    /// From all together, per minute.
    pub total: u32,
}

impl Default for JoinLimits {
    fn default() -> Self {
        Self { per_source: 5, total: 50 }
    }
}

/// Sources that are remembered; when as many have failed within a minute, `total` has struck long
/// before.
const SOURCES: usize = 1024;
const MINUTE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Thousandths of a join.
    level: u64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, per_minute: u32, now: Instant) -> bool {
        let full = u64::from(per_minute) * 1000;
        let passed = now.saturating_duration_since(self.at);
        let fresh = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).saturating_mul(full)
            / u64::try_from(MINUTE.as_millis()).unwrap_or(1);
        self.level = self.level.saturating_add(fresh).min(full);
        self.at = now;
        if self.level < 1000 {
            return false;
        }
        self.level -= 1000;
        true
    }
}

/// Token buckets, filled at an even pace.
#[derive(Debug)]
pub(super) struct JoinLimiter {
    limits: JoinLimits,
    sources: HashMap<IpAddr, Bucket>,
    total: Bucket,
}

impl JoinLimiter {
    pub(super) fn new(limits: JoinLimits, now: Instant) -> Self {
        let total = Bucket { level: u64::from(limits.total) * 1000, at: now };
        Self { limits, sources: HashMap::new(), total }
    }

    /// Whether a join from here is served.
    pub(super) fn take(&mut self, source: IpAddr, now: Instant) -> bool {
        let source = network_of(source);
        if self.sources.len() >= SOURCES && !self.sources.contains_key(&source) {
            self.sources.retain(|_, bucket| now.saturating_duration_since(bucket.at) < MINUTE);
            if self.sources.len() >= SOURCES {
                return false;
            }
        }
        let full = u64::from(self.limits.per_source) * 1000;
        let bucket = self.sources.entry(source).or_insert(Bucket { level: full, at: now });
        bucket.take(self.limits.per_source, now) && self.total.take(self.limits.total, now)
    }

    /// Gives back what a correct join took.
    pub(super) fn give_back(&mut self, source: IpAddr) {
        if let Some(bucket) = self.sources.get_mut(&network_of(source)) {
            bucket.level = bucket.level.saturating_add(1000);
        }
        self.total.level = self.total.level.saturating_add(1000);
    }
}

/// Callers whose certificate was refused: all are counted, some are told.
#[derive(Debug)]
pub(super) struct Refusals {
    count: u64,
    told: Bucket,
}

impl Refusals {
    pub(super) const fn new(now: Instant) -> Self {
        Self { count: 0, told: Bucket { level: TOLD as u64 * 1000, at: now } }
    }

    /// Counts one more; how many there were so far if the log is to tell of this one.
    pub(super) fn count(&mut self, now: Instant) -> Option<u64> {
        self.count = self.count.saturating_add(1);
        self.told.take(TOLD, now).then_some(self.count)
    }
}

/// One customer of an IPv6 provider has a /64 at least.
fn network_of(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_a_minute_from_one_source_and_fifty_from_all() {
        let start = Instant::now();
        let mut limiter = JoinLimiter::new(JoinLimits::default(), start);
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        for _ in 0..5 {
            assert!(limiter.take(one, start));
        }
        assert!(!limiter.take(one, start));
        assert!(!limiter.take("::ffff:192.0.2.1".parse().unwrap(), start));
        assert!(!limiter.take(one, start + Duration::from_secs(11)));
        assert!(limiter.take(one, start + Duration::from_secs(23)));
        let served = (0..200u8)
            .filter(|i| {
                limiter.take(IpAddr::from([198, 51, 100, *i]), start + Duration::from_secs(23))
            })
            .count();
        assert!((45..=50).contains(&served), "{served}");
    }

    #[test]
    fn a_prefix_is_one_source_and_correct_joins_are_free() {
        let start = Instant::now();
        let mut limiter = JoinLimiter::new(JoinLimits { per_source: 1, total: 9 }, start);
        assert!(limiter.take("2001:db8::1".parse().unwrap(), start));
        assert!(!limiter.take("2001:db8::2".parse().unwrap(), start));
        assert!(limiter.take("2001:db8:0:1::1".parse().unwrap(), start));
        limiter.give_back("2001:db8::7".parse().unwrap());
        assert!(limiter.take("2001:db8::3".parse().unwrap(), start));
    }

    #[test]
    fn all_refusals_are_counted_and_few_are_told() {
        let start = Instant::now();
        let mut refusals = Refusals::new(start);
        let told: Vec<u64> = (0..1000).filter_map(|_| refusals.count(start)).collect();
        assert_eq!(told, (1..=10).collect::<Vec<u64>>());
        assert_eq!(refusals.count(start + Duration::from_secs(7)), Some(1001));
        assert_eq!(refusals.count(start + Duration::from_secs(8)), None);
    }

    #[test]
    fn the_table_of_sources_is_bounded() {
        let start = Instant::now();
        let mut limiter = JoinLimiter::new(JoinLimits { per_source: 5, total: u32::MAX }, start);
        for i in 0..5000u32 {
            limiter.take(IpAddr::from(i.to_be_bytes()), start);
        }
        assert_eq!(limiter.sources.len(), SOURCES);
        assert!(limiter.take("2001:db8::".parse().unwrap(), start + MINUTE));
        assert_eq!(limiter.sources.len(), 1);
    }
}
