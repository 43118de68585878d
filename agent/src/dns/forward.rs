//! Questions about names that are not ours: asked of all upstreams at once, believed by RFC 5452, kept for a while.
//!
//! ```text
//! asker ── cache ── at most LIMIT at once ── all upstreams side by side ── first answer that has records
//!                                                                       └─ else the first upstream's refusal,
//!                                                                          or another's after a moment
//! ```
//!
//! Each question leaves from a socket of its own, connected to its upstream, with a port and an id at random.

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
    dns::{CacheKey, Heard, Query, UpstreamAnswer},
    limits::DNS_UDP_LEN,
};

use super::resolvers::{HostResolvers, SERVERS};
use crate::netlink::netns::Netns;

/// Questions of all sandboxes that are under way: some hundred sockets, far below the usual limit of files.
const UNDER_WAY: usize = 256;
/// Answers that are kept.
const KEPT: NonZeroUsize = NonZeroUsize::new(2048).unwrap();
/// Longest answer that is kept, so that all of them take a few megabytes.
const KEPT_LEN: usize = 2048;
/// How long an upstream may take in all: less than the five seconds that libc waits.
const PATIENCE: Duration = Duration::from_secs(3);
/// When the question is sent again over UDP, from the first time on.
const AGAIN: [Duration; 2] = [Duration::from_millis(800), Duration::from_millis(1200)];
/// How long a refusal waits for a better answer of an upstream that stands before.
const BETTER: Duration = Duration::from_millis(300);
/// Datagrams of others that one question sits through.
const FOREIGN: usize = 16;

/// One upstream, and where it is asked from.
#[derive(Clone, Debug)]
pub(super) struct Upstream {
    pub(super) addr: SocketAddr,
    /// The sandbox that it is asked from; the host otherwise.
    pub(super) inside: Option<Arc<Netns>>,
}

/// Why nobody answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// Too many questions are under way.
    Busy,
    /// No upstream has an answer.
    Failed,
}

/// Which upstreams answered, by address and by whether a sandbox asked: others may say something else.
type Source = Vec<(SocketAddr, bool)>;

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
}

impl Default for Forwarder {
    fn default() -> Self {
        Self {
            host: HostResolvers::new("/etc/resolv.conf".into()),
            cache: Mutex::new(LruCache::new(KEPT)),
            room: Semaphore::new(UNDER_WAY),
        }
    }
}

impl Forwarder {
    /// The upstreams of the host.
    pub(super) fn host(&self) -> Vec<Upstream> {
        let servers = self.host.current(Instant::now());
        servers.iter().map(|addr| Upstream { addr: *addr, inside: None }).collect()
    }

    /// The reply that these upstreams lead to.
    pub(super) async fn ask(
        &self,
        query: Query,
        upstreams: &[Upstream],
        foreign: impl Fn(usize),
    ) -> Result<Vec<u8>, Unanswered> {
        // A sandbox may be cut off from what another reaches at the same address.
        let cacheable = upstreams.iter().all(|upstream| upstream.inside.is_none());
        let source = upstreams.iter().map(|it| (it.addr, it.inside.is_some())).collect();
        let key = (source, query.cache_key());
        if let Some(reply) = self.kept(&key, &query, Instant::now()) {
            return Ok(reply);
        }
        let _permit = self.room.try_acquire().map_err(|_full| Unanswered::Busy)?;
        let query = Arc::new(query);
        let (answer, strangers) = race(&query, upstreams).await;
        foreign(strangers);
        let answer = Arc::new(answer.ok_or(Unanswered::Failed)?);
        if cacheable && answer.ttl > Duration::ZERO && answer.len <= KEPT_LEN {
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

/// Asks all upstreams at once. With the answer, how many datagrams were somebody else's.
async fn race(query: &Arc<Query>, upstreams: &[Upstream]) -> (Option<UpstreamAnswer>, usize) {
    let mut asking = JoinSet::new();
    for (rank, upstream) in upstreams.iter().take(SERVERS).cloned().enumerate() {
        let query = Arc::clone(query);
        asking.spawn(async move {
            let mut foreign = 0;
            let answer = timeout(PATIENCE, ask_one(&query, &upstream, &mut foreign)).await;
            (rank, answer.ok().and_then(Result::ok).flatten(), foreign)
        });
    }
    let mut strangers = 0;
    let mut refusal = None;
    let better = sleep(PATIENCE);
    tokio::pin!(better);
    loop {
        let joined = tokio::select! {
            joined = asking.join_next() => joined,
            () = &mut better, if refusal.is_some() => return (refusal, strangers),
        };
        let Some(joined) = joined else { return (refusal, strangers) };
        let Ok((rank, answer, foreign)) = joined else { continue };
        strangers += foreign;
        match answer {
            Some(answer) if answer.is_positive() || rank == 0 => return (Some(answer), strangers),
            Some(answer) if refusal.is_none() => {
                refusal = Some(answer);
                better.as_mut().reset(tokio::time::Instant::now() + BETTER);
            }
            Some(_) | None => {}
        }
    }
}

/// What one upstream says; nothing if it cannot answer.
async fn ask_one(
    query: &Query,
    upstream: &Upstream,
    foreign: &mut usize,
) -> io::Result<Option<UpstreamAnswer>> {
    let id: u16 = rand::random();
    let Some(bytes) = query.to_upstream(id) else { return Ok(None) };
    let socket = UdpSocket::from_std(open(upstream, Type::DGRAM, Protocol::UDP).await?.into())?;
    socket.connect(upstream.addr).await?;
    socket.send(&bytes).await?;
    let mut again = AGAIN.iter();
    // One byte more than was offered: whatever is longer is no answer of an honest upstream.
    let mut buffer = vec![0; usize::from(DNS_UDP_LEN) + 1];
    while *foreign < FOREIGN {
        let wait = again.as_slice().first().copied().unwrap_or(PATIENCE);
        let Ok(received) = timeout(wait, socket.recv(&mut buffer)).await else {
            again.next();
            socket.send(&bytes).await?;
            continue;
        };
        let len = received?;
        match query.hear(id, buffer.get(..len).unwrap_or_default()) {
            Heard::Answer(answer) => return Ok(Some(answer)),
            Heard::Cut => return ask_over_tcp(query, upstream).await,
            Heard::Failed => return Ok(None),
            Heard::Foreign => *foreign += 1,
        }
    }
    Ok(None)
}

async fn ask_over_tcp(query: &Query, upstream: &Upstream) -> io::Result<Option<UpstreamAnswer>> {
    let id: u16 = rand::random();
    let Some(bytes) = query.to_upstream(id) else { return Ok(None) };
    let Ok(len) = u16::try_from(bytes.len()) else { return Ok(None) };
    let socket = open(upstream, Type::STREAM, Protocol::TCP).await?;
    let mut stream = TcpSocket::from_std_stream(socket.into()).connect(upstream.addr).await?;
    stream.write_all(&[len.to_be_bytes().as_slice(), &bytes].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(match query.hear(id, &answer) {
        Heard::Answer(answer) => Some(answer),
        Heard::Cut | Heard::Failed | Heard::Foreign => None,
    })
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
