//! Questions about names that are not ours: asked of all upstreams at once, believed by RFC 5452,
//! kept for a while.
//!
//! ```text
//! asker ── cache ── room for some hundred ── all upstreams side by side ── the first upstream's answer,
//!                                                                          or another's after a moment
//! ```
//!
//! The moment is for the order in which the servers stand: where a company's own server and a
//! public one know one name, libc takes the word of the first. Each question leaves from a socket
//! of its own, connected to its upstream, with a port and an id at random.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use lru::LruCache;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use vxmesh_proto::{
    dns::{CacheKey, Heard, HostOptions, Query, ResolvConf, UpstreamAnswer},
    limits::DNS_UDP_LEN,
};

use super::{
    clients::Limits,
    edns::Plain,
    resolvers::{HostResolvers, SERVERS},
};
use crate::netlink::netns::Netns;

/// Questions of all sandboxes that are under way: some hundred sockets, far below the usual limit
/// of files.
const UNDER_WAY: usize = 256;
/// Answers that are kept.
const KEPT: NonZeroUsize = NonZeroUsize::new(2048).unwrap();
/// Longest answer that is kept, so that all of them take a few megabytes.
const KEPT_LEN: usize = 2048;
/// When the question is sent again over UDP, from the first time on.
const AGAIN: [Duration; 2] = [Duration::from_millis(800), Duration::from_millis(1200)];
/// How long an answer waits for that of an upstream that stands before.
const BETTER: Duration = Duration::from_millis(300);
/// How long the rest of a cut answer may take to come over TCP before what came is given.
const REST: Duration = Duration::from_millis(1500);
/// How long a question waits for room: as long as one that waits for a name of ours.
const ROOM: Duration = Duration::from_secs(2);
/// Datagrams of others that one question sits through.
const FOREIGN: usize = 16;

/// One upstream, and where it is asked from.
#[derive(Clone, Debug)]
pub(super) struct Upstream {
    pub(super) addr: SocketAddr,
    /// The sandbox that it is asked from; the host otherwise.
    pub(super) inside: Option<Netns>,
}

/// The upstreams of a question, and how they are asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Panel {
    /// In the order in which libc would ask them.
    pub(super) upstreams: Vec<Upstream>,
    pub(super) options: HostOptions,
}

/// Why nobody answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// Too many questions are under way.
    Busy,
    /// No upstream has an answer.
    Failed,
}

/// Which upstreams answered: others may say something else.
type Source = Vec<SocketAddr>;

#[derive(Debug)]
struct Kept {
    answer: Arc<UpstreamAnswer>,
    since: Instant,
}

/// What all servers of an agent share to ask upstreams.
#[derive(Debug)]
pub(super) struct Forwarder {
    host: HostResolvers,
    cache: Mutex<LruCache<(Source, CacheKey), Kept>>,
    room: Semaphore,
    plain: Arc<Plain>,
}

impl Default for Forwarder {
    fn default() -> Self {
        Self {
            host: HostResolvers::new("/etc/resolv.conf".into()),
            cache: Mutex::new(LruCache::new(KEPT)),
            room: Semaphore::new(UNDER_WAY),
            plain: Arc::default(),
        }
    }
}

impl Forwarder {
    /// What the host's resolv.conf says.
    pub(super) fn host_conf(&self) -> Arc<ResolvConf> {
        self.host.current(Instant::now())
    }

    /// The upstreams of the host.
    pub(super) fn host(&self) -> Panel {
        let conf = self.host_conf();
        let upstream = |addr: &SocketAddr| Upstream { addr: *addr, inside: None };
        let upstreams = conf.servers.iter().map(upstream).collect();
        Panel { upstreams, options: conf.options }
    }

    /// The reply that was given before to the same question to these upstreams, while it holds.
    pub(super) fn recall(&self, query: &Query, panel: &Panel) -> Option<Vec<u8>> {
        self.kept(&panel.key(query)?, query, Instant::now())
    }

    /// The reply that these upstreams lead to.
    pub(super) async fn ask(
        &self,
        query: Query,
        panel: &Panel,
        limits: &Limits,
        foreign: impl Fn(usize),
    ) -> Result<Vec<u8>, Unanswered> {
        // Whatever others ask, each client has some room of its own; for more it waits, and so do
        // they.
        let _permit = match limits.own.try_acquire() {
            Ok(permit) => permit,
            Err(_full) => match timeout(ROOM, self.room.acquire()).await {
                Ok(Ok(permit)) => permit,
                Ok(Err(_)) | Err(_) => return Err(Unanswered::Busy),
            },
        };
        let query = Arc::new(query);
        let (answer, strangers) = race(&query, panel, &self.plain).await;
        foreign(strangers);
        let answer = Arc::new(answer.ok_or(Unanswered::Failed)?);
        if let Some(key) = panel.key(&query)
            && answer.ttl > Duration::ZERO
            && answer.len <= KEPT_LEN
        {
            let kept = Kept { answer: Arc::clone(&answer), since: Instant::now() };
            self.cache.lock().unwrap_or_else(PoisonError::into_inner).put(key, kept);
        }
        Ok(answer.reply(&query, Duration::ZERO))
    }

    fn kept(&self, key: &(Source, CacheKey), query: &Query, now: Instant) -> Option<Vec<u8>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = cache.get(key)?;
        let age = now.duration_since(kept.since);
        if age >= kept.answer.ttl {
            cache.pop(key);
            return None;
        }
        let answer = Arc::clone(&kept.answer);
        drop(cache);
        Some(answer.reply(query, age))
    }
}

impl Panel {
    /// Under what its answer is kept. A sandbox may be cut off from what another reaches at the
    /// same address, so answers from inside of one are not.
    fn key(&self, query: &Query) -> Option<(Source, CacheKey)> {
        let outside = self.upstreams.iter().all(|upstream| upstream.inside.is_none());
        outside.then(|| (self.upstreams.iter().map(|it| it.addr).collect(), query.cache_key()))
    }
}

/// Asks all upstreams at once. With the answer, how many datagrams were somebody else's.
async fn race(
    query: &Arc<Query>,
    panel: &Panel,
    plain: &Arc<Plain>,
) -> (Option<UpstreamAnswer>, usize) {
    let (mut asking, options) = (JoinSet::new(), panel.options);
    for (rank, upstream) in panel.upstreams.iter().take(SERVERS).cloned().enumerate() {
        let (query, plain) = (Arc::clone(query), Arc::clone(plain));
        asking.spawn(async move {
            let mut foreign = 0;
            let asked = ask_one(&query, &upstream, (options.use_vc, &plain), &mut foreign);
            let answer = timeout(options.patience(), asked).await;
            (rank, answer.ok().and_then(Result::ok).flatten(), foreign)
        });
    }
    let mut held = Held::new(panel);
    let mut strangers = 0;
    let better = sleep(options.patience());
    tokio::pin!(better);
    loop {
        let joined = tokio::select! {
            joined = asking.join_next() => joined,
            () = &mut better, if held.some() => return (held.best(), strangers),
        };
        let Some(joined) = joined else { return (held.best(), strangers) };
        let Ok((rank, answer, foreign)) = joined else { continue };
        strangers += foreign;
        if !held.some() {
            better.as_mut().reset(tokio::time::Instant::now() + BETTER);
        }
        if held.put(rank, answer) {
            return (held.best(), strangers);
        }
    }
}

/// What one upstream said so far.
#[derive(Clone)]
enum Said {
    /// It is asked.
    Nothing,
    /// It cannot answer.
    Failure,
    Answer(UpstreamAnswer),
}

impl Said {
    const fn answer(&self) -> Option<&UpstreamAnswer> {
        match self {
            Self::Answer(answer) => Some(answer),
            Self::Nothing | Self::Failure => None,
        }
    }
}

/// What the upstreams of a question said so far, in their order.
struct Held {
    said: Vec<Said>,
    rotate: bool,
}

impl Held {
    fn new(panel: &Panel) -> Self {
        let count = panel.upstreams.len().min(SERVERS);
        Self { said: vec![Said::Nothing; count], rotate: panel.options.rotate }
    }

    fn answers(&self) -> impl Iterator<Item = &UpstreamAnswer> {
        self.said.iter().filter_map(Said::answer)
    }

    /// Whether an answer came.
    fn some(&self) -> bool {
        self.answers().next().is_some()
    }

    /// Takes what one upstream said; whether it is not worth waiting for the others.
    fn put(&mut self, rank: usize, answer: Option<UpstreamAnswer>) -> bool {
        if let Some(said) = self.said.get_mut(rank) {
            *said = answer.map_or(Said::Failure, Said::Answer);
        }
        (self.rotate && self.answers().any(UpstreamAnswer::is_positive)) || self.first().is_some()
    }

    /// The answer of the first server, where those that stand before it have failed.
    fn first(&self) -> Option<&UpstreamAnswer> {
        self.said.iter().find(|said| !matches!(said, Said::Failure))?.answer()
    }

    /// The first server's answer, a denial too, as libc has it. While that is awaited, another's
    /// records, or its denial.
    fn best(&self) -> Option<UpstreamAnswer> {
        let first = self.first().filter(|answer| !self.rotate || answer.is_positive());
        let positive = || self.answers().find(|answer| answer.is_positive());
        first.or_else(positive).or_else(|| self.answers().next()).cloned()
    }
}

/// What one upstream says; nothing if it cannot answer.
async fn ask_one(
    query: &Query,
    upstream: &Upstream,
    (use_vc, plain): (bool, &Plain),
    foreign: &mut usize,
) -> io::Result<Option<UpstreamAnswer>> {
    let mut edns = !plain.is(upstream.addr, Instant::now());
    if use_vc {
        return ask_over_tcp(query, upstream, edns).await;
    }
    let id: u16 = rand::random();
    let socket = UdpSocket::from_std(open(upstream, Type::DGRAM, Protocol::UDP).await?.into())?;
    socket.connect(upstream.addr).await?;
    send(&socket, query, id, edns).await?;
    let (mut again, mut ignored) = (AGAIN.iter(), false);
    // One byte more than was offered: whatever is longer is no answer of an honest upstream.
    let mut buffer = vec![0; usize::from(DNS_UDP_LEN) + 1];
    while *foreign < FOREIGN {
        let received = match again.as_slice().first() {
            Some(wait) => timeout(*wait, socket.recv(&mut buffer)).await.ok(),
            None => Some(socket.recv(&mut buffer).await),
        };
        let Some(received) = received else {
            again.next();
            // It may drop what has EDNS. Whoever checks signatures needs that, so it is tried once
            // more.
            if !query.wants_dnssec() || again.as_slice().is_empty() {
                (ignored, edns) = (ignored || edns, false);
            }
            send(&socket, query, id, edns).await?;
            continue;
        };
        let len = received?;
        match query.hear(id, buffer.get(..len).unwrap_or_default()) {
            Heard::Answer(answer) => {
                match (answer.has_edns(), ignored) {
                    (true, _) => plain.knows(upstream.addr),
                    (false, true) => plain.ignored(upstream.addr, Instant::now()),
                    (false, false) => {}
                }
                return Ok(Some(answer));
            }
            Heard::Cut(answer) => {
                let rest = timeout(REST, ask_over_tcp(query, upstream, edns)).await;
                let rest = rest.ok().and_then(Result::ok).flatten();
                return Ok(rest.or_else(|| answer.is_positive().then_some(answer)));
            }
            Heard::Plain if edns => {
                edns = false;
                plain.refused(upstream.addr, Instant::now());
                send(&socket, query, id, edns).await?;
            }
            // It refused what was sent before.
            Heard::Plain if ignored => ignored = false,
            Heard::Plain | Heard::Failed => return Ok(None),
            Heard::Foreign => *foreign += 1,
        }
    }
    Ok(None)
}

async fn send(socket: &UdpSocket, query: &Query, id: u16, edns: bool) -> io::Result<()> {
    let bytes = query.to_upstream(id, edns).ok_or_else(|| io::Error::other("no question"))?;
    socket.send(&bytes).await.map(drop)
}

async fn ask_over_tcp(
    query: &Query,
    upstream: &Upstream,
    edns: bool,
) -> io::Result<Option<UpstreamAnswer>> {
    match exchange_over_tcp(query, upstream, edns).await? {
        Heard::Plain if edns => Ok(answered(exchange_over_tcp(query, upstream, false).await?)),
        heard => Ok(answered(heard)),
    }
}

fn answered(heard: Heard) -> Option<UpstreamAnswer> {
    match heard {
        Heard::Answer(answer) => Some(answer),
        Heard::Cut(_) | Heard::Plain | Heard::Failed | Heard::Foreign => None,
    }
}

async fn exchange_over_tcp(query: &Query, upstream: &Upstream, edns: bool) -> io::Result<Heard> {
    let id: u16 = rand::random();
    let Some(bytes) = query.to_upstream(id, edns) else { return Ok(Heard::Failed) };
    let Ok(len) = u16::try_from(bytes.len()) else { return Ok(Heard::Failed) };
    let socket = open(upstream, Type::STREAM, Protocol::TCP).await?;
    let mut stream = TcpSocket::from_std_stream(socket.into()).connect(upstream.addr).await?;
    stream.write_all(&[len.to_be_bytes().as_slice(), &bytes].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(query.hear(id, &answer))
}

/// A socket with a port at random, in the namespace that the upstream is asked from.
async fn open(upstream: &Upstream, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let local: IpAddr = match upstream.addr {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let make = move || {
        let socket =
            Socket::new(Domain::for_address(SocketAddr::new(local, 0)), kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::new(local, 0).into())?;
        io::Result::Ok(socket)
    };
    match upstream.inside.clone() {
        None => make(),
        // Entering a namespace takes a thread; the runtime's are not for waiting.
        Some(netns) => tokio::task::spawn_blocking(move || netns.run(make)).await?,
    }
}

#[cfg(test)]
mod tests {
    use vxmesh_proto::dns::Transport;

    use super::{super::clients::Rates, *};

    /// `a.b` of type A.
    const QUESTION: &[u8] =
        b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x01b\x00\x00\x01\x00\x01";

    fn panel(rotate: bool) -> Panel {
        let at = |last| Upstream { addr: ([192, 0, 2, last], 53).into(), inside: None };
        let options = HostOptions { rotate, ..HostOptions::default() };
        Panel { upstreams: [1, 2, 3].map(at).into(), options }
    }

    /// An address that ends so; without one, a denial.
    fn answer(last: Option<u8>) -> UpstreamAnswer {
        let query = Query::parse(QUESTION, Transport::Udp).unwrap();
        let mut bytes = query.to_upstream(7, false).unwrap();
        bytes[2] |= 0x80;
        bytes[3] |= 0x80;
        if let Some(last) = last {
            bytes[7] = 1;
            bytes.extend(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x0a\x00\x00");
            bytes.push(last);
        }
        match query.hear(7, &bytes) {
            Heard::Answer(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn last(held: &Held) -> Option<u8> {
        let query = Query::parse(QUESTION, Transport::Udp).unwrap();
        held.best().map(|answer| answer.reply(&query, Duration::ZERO).last().copied().unwrap())
    }

    #[test]
    fn the_server_that_stands_first_has_the_word() {
        let mut held = Held::new(&panel(false));
        assert!(!held.put(1, Some(answer(Some(2)))) && held.some(), "the first may still answer");
        assert!(held.put(0, Some(answer(Some(1)))));
        assert_eq!(last(&held), Some(1));
        // Its failure is no word.
        let mut held = Held::new(&panel(false));
        assert!(!held.put(0, None) && !held.some());
        assert!(!held.put(2, Some(answer(Some(3)))));
        assert_eq!(last(&held), Some(3), "while nobody before it has answered");
        assert!(held.put(1, Some(answer(None))), "a denial is one");
        assert!(held.best().is_some_and(|answer| !answer.is_positive()));
        let mut held = Held::new(&panel(true));
        assert!(held.put(2, Some(answer(Some(3)))), "none stands before another");
        assert_eq!(last(&held), Some(3));
        let mut held = Held::new(&panel(false));
        assert!([0, 1, 2].map(|rank| held.put(rank, None)).iter().all(|enough| !enough));
        assert!(held.best().is_none());
    }

    #[tokio::test]
    async fn others_questions_leave_each_client_some_room() {
        let forwarder = Forwarder::default();
        let taken = forwarder.room.try_acquire_many(u32::try_from(UNDER_WAY).unwrap()).unwrap();
        let limits = Limits::new(Rates::default(), Instant::now());
        let query = || Query::parse(QUESTION, Transport::Udp).unwrap();
        let none = Panel::default();
        let asked = forwarder.ask(query(), &none, &limits, |_| {}).await;
        assert_eq!(asked, Err(Unanswered::Failed), "it was asked");
        let own = limits.own.try_acquire_many(4).unwrap();
        let asked = forwarder.ask(query(), &none, &limits, |_| {}).await;
        assert_eq!(asked, Err(Unanswered::Busy));
        drop((own, taken));
    }
}
