//! Backends that die without a word: the other backends get the new connections before gossip
//! knows.

use std::{
    env,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use vxmesh::api::{Network, Service};
use vxmesh_tests::{
    lab::{Allowed, Lab, Plugged, tell, wait_until},
    netns::NetNs,
    outside::sh,
    traffic::listen,
};

use super::settled;

const HOSTS: [&str; 3] = ["h2", "h3", "h4"];
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(10);
const ANY_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
/// After how long at most nobody new is sent to a dead backend, and who sends datagrams hears
/// another. A test fails at ten times this only, unless `VXMESH_FULL` is set.
const GOAL: Duration = Duration::from_millis(500);
const HEARS: Duration = Duration::from_secs(1);
/// A connection that took longer was asked for twice, unless all take long on a busy machine.
const AGAIN: Duration = Duration::from_millis(900);

/// A node that was dead speaks before its endpoints are known again, and is heard on one of its two
/// ports first.
const MENDED: Allowed<'static> = Allowed {
    drops: &["backend_unknown", "no_session", "unknown_index", "unknown_peer", "not_a_member"],
    warnings: &["but nothing on the data port"],
};

/// What the log says of a port, and of a node, that gets no new connections.
const PORT: &str = "accepts nothing";
const NODE: &str = "answers nothing";

fn at_most(goal: Duration) -> Duration {
    if env::var_os("VXMESH_FULL").is_some() { goal } else { 10 * goal }
}

/// A server that says its host's name to each client, and to each datagram.
struct Server {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Server {
    fn start(netns: &NetNs, name: &'static str) -> Result<Self> {
        let any = (Ipv6Addr::UNSPECIFIED, 8080);
        let (listener, socket) = netns.run(|| Ok((listen(any)?, UdpSocket::bind(any)?)))?;
        listener.set_nonblocking(true)?;
        socket.set_nonblocking(true)?;
        let ends = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ends);
        let serve = move || {
            while !end.load(Ordering::Relaxed) {
                let mut is_idle = true;
                if let Ok((mut client, _)) = listener.accept() {
                    // A client may be gone.
                    drop(client.write_all(name.as_bytes()));
                    is_idle = false;
                }
                if let Ok((_, from)) = socket.recv_from(&mut [0; 16]) {
                    drop(socket.send_to(name.as_bytes(), from));
                    is_idle = false;
                }
                if is_idle {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        };
        Ok(Self { ends, thread: thread::spawn(serve) })
    }

    fn end(self) -> Result<()> {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the server panicked")
    }
}

/// One request: when it began, how long it took, and who answered.
struct Request {
    at: Instant,
    took: Duration,
    answer: Option<String>,
}

/// Requests that begin one after the other, whether or not those before have ended.
struct Load {
    ends: Arc<AtomicBool>,
    requests: Arc<Mutex<Vec<Request>>>,
    client: JoinHandle<Result<()>>,
}

impl Load {
    fn start(netns: &NetNs, vip: IpAddr) -> Result<Self> {
        let (ends, requests) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (netns, end) = (netns.try_clone()?, Arc::clone(&ends));
        let all: Arc<Mutex<Vec<Request>>> = Arc::clone(&requests);
        let ask = move || {
            let requests = Arc::clone(&all);
            let at = Instant::now();
            let answer = request(vip).ok();
            let request = Request { at, took: at.elapsed(), answer };
            requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        };
        // Threads are in the namespace of who begins them.
        let client = thread::spawn(move || {
            netns.run(|| {
                thread::scope(|clients| {
                    while !end.load(Ordering::Relaxed) {
                        clients.spawn(&ask);
                        thread::sleep(PAUSE);
                    }
                });
                Ok(())
            })
        });
        Ok(Self { ends, requests, client })
    }

    fn read<T>(&self, read: impl FnOnce(&[Request]) -> T) -> T {
        read(&self.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until so many requests that began after `since` were answered, by all of these.
    fn answered(&self, since: Instant, names: &[&str], count: usize) -> Result<()> {
        wait_until("requests are answered", || {
            Ok(self.read(|requests| {
                let after = requests.iter().filter(|it| it.at > since);
                let answers: Vec<&str> = after.filter_map(|it| it.answer.as_deref()).collect();
                answers.len() >= count && names.iter().all(|name| answers.contains(name))
            }))
        })
    }

    /// How long a connection takes at most that is asked for once.
    fn once(&self) -> Duration {
        AGAIN.max(self.read(|all| all.iter().map(|it| it.took).max().unwrap_or_default() * 2))
    }

    fn end(self) -> Result<()> {
        self.ends.store(true, Ordering::Relaxed);
        self.client.join().ok().context("a client panicked")?
    }
}

/// A client that sends one datagram after the other, and what it heard since.
struct Sender {
    ends: Arc<AtomicBool>,
    is_connected: bool,
    heard: Arc<Mutex<Vec<(Instant, String)>>>,
    client: JoinHandle<()>,
}

impl Sender {
    /// One whose backend is this one. `is_connected` as connect(2) has it.
    fn to(netns: &NetNs, vip: IpAddr, backend: &str, is_connected: bool) -> Result<Self> {
        let vip = SocketAddr::new(vip, 80);
        let mut found = None;
        wait_until(&format!("a client's datagrams go to {backend}"), || {
            let any = if vip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { ANY_V6 };
            let socket = netns.run(|| Ok(UdpSocket::bind((any, 0))?))?;
            socket.set_read_timeout(Some(GOAL))?;
            if is_connected {
                socket.connect(vip)?;
            }
            let mut answer = [0; 16];
            let send = || if is_connected { socket.send(b"?") } else { socket.send_to(b"?", vip) };
            let len = send().and_then(|_| socket.recv(&mut answer)).unwrap_or_default();
            found = answer.get(..len).is_some_and(|it| it == backend.as_bytes()).then_some(socket);
            Ok(found.is_some())
        })?;
        let socket = found.context("no client")?;
        socket.set_nonblocking(true)?;
        let (ends, heard) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let end = Arc::clone(&ends);
        let all: Arc<Mutex<Vec<(Instant, String)>>> = Arc::clone(&heard);
        let client = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                // It may be told that nobody listens, and goes on.
                drop(if is_connected { socket.send(b"?") } else { socket.send_to(b"?", vip) });
                let mut answer = [0; 16];
                while let Ok(len) = socket.recv(&mut answer) {
                    let name = String::from_utf8_lossy(answer.get(..len).unwrap_or_default());
                    let heard = (Instant::now(), name.into_owned());
                    all.lock().unwrap_or_else(PoisonError::into_inner).push(heard);
                }
                thread::sleep(PAUSE);
            }
        });
        Ok(Self { ends, is_connected, heard, client })
    }

    /// Two of them, one of each kind.
    fn both(netns: &NetNs, vip: IpAddr, backend: &str) -> Result<[Self; 2]> {
        Ok([Self::to(netns, vip, backend, true)?, Self::to(netns, vip, backend, false)?])
    }

    /// Waits until it hears another backend than the one that died, which is to be soon.
    fn moves(self, (died, what): (Instant, &str), backend: &str) -> Result<()> {
        let mut took = None;
        wait_until("another backend answers datagrams", || {
            let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            let other = heard.iter().find(|(at, name)| *at > died && name != backend);
            took = other.map(|(at, _)| at.saturating_duration_since(died));
            Ok(took.is_some())
        })?;
        self.ends.store(true, Ordering::Relaxed);
        self.client.join().ok().context("a client panicked")?;
        let took = took.context("nobody answers")?;
        let socket = if self.is_connected { "a connected socket" } else { "a socket" };
        tell(&format!("{what}: {socket} hears another backend after {took:.0?}"));
        ensure!(took < at_most(HEARS), "{what}: {socket} hears another after {took:?}");
        Ok(())
    }
}

fn request(vip: IpAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(vip, 80), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(!answer.is_empty(), "nothing came");
    Ok(answer)
}

/// What became of the requests since a backend died.
fn judge(
    lab: &Lab,
    load: &Load,
    (died, what): (Instant, &str),
    (victim, said, once): (&str, &str, Duration),
) -> Result<()> {
    // Without a word of it a client is only helped by its own second SYN, or by gossip.
    wait_until("the client's node gives it up", || {
        let log = lab.log("h1")?;
        let told = log.lines().rfind(|line| line.contains("services send"));
        Ok(told.is_some_and(|line| line.contains(said) && line.contains(victim)))
    })?;
    let limit = at_most(GOAL);
    // By then all have ended that were asked for twice.
    load.answered(died + 10 * GOAL, &[], 50)?;
    let (last, failed, late) = load.read(|requests| {
        let since = |request: &Request| request.at.saturating_duration_since(died);
        let after = requests.iter().filter(|request| request.at >= died);
        let troubled = |it: &&Request| it.answer.is_none() || it.took >= once;
        let last = after.clone().filter(troubled).map(since).max().unwrap_or_default();
        let failed: Vec<Duration> = after.filter(|it| it.answer.is_none()).map(since).collect();
        let late = failed.iter().filter(|at| **at > limit).count();
        (last, failed, late)
    });
    tell(&format!(
        "{what}: the last new connection to it after {last:.0?}; {} requests failed, begun within {:.0?}",
        failed.len(),
        failed.iter().max().copied().unwrap_or_default(),
    ));
    ensure!(last < limit && late == 0, "{what}: the last after {last:?}, {failed:?}");
    Ok(())
}

/// A backend on each of [`HOSTS`], a client on h1, and the service's address of this IP version.
fn served(lab: &Lab, is_ipv4: bool) -> Result<(Vec<Plugged>, Plugged, IpAddr)> {
    let create = ["network", "create", "blue", "--subnet", "10.74.0.0/24", "--subnet", "fd74::/64"];
    let _blue: Network = lab.json("h1", &create)?;
    for host in HOSTS {
        wait_until("the network is known", || {
            Ok(!lab.get::<Vec<Network>>(host, "/v1/networks")?.is_empty())
        })?;
    }
    let backends: Vec<Plugged> = HOSTS
        .into_iter()
        .map(|host| lab.sandbox(host, "blue", &format!("on-{host}")))
        .collect::<Result<_>>()?;
    let client = lab.sandbox("h1", "blue", "c")?;
    let all = backends.iter().chain([&client]);
    let endpoints: Vec<_> = all.map(|it| &it.endpoint).collect();
    lab.all_know(&endpoints)?;
    let mut make = vec!["service", "create", "web", "--network", "blue"];
    make.extend(["--port", "80:8080", "--port", "80:8080/udp"]);
    make.extend(["--backend", "on-h2", "--backend", "on-h3", "--backend", "on-h4"]);
    let web: Service = lab.json("h1", &make)?;
    settled(lab, "web", 3)?;
    let vip = web.vips.into_iter().find(|vip| vip.is_ipv4() == is_ipv4).context("no VIP")?;
    Ok((backends, client, vip))
}

/// What a client does while backends die: requests, and datagrams to one backend.
struct Client<'a> {
    lab: &'a Lab,
    netns: &'a NetNs,
    vip: IpAddr,
    load: Load,
    once: Duration,
}

impl Client<'_> {
    /// A server of h2 ends, and its sandbox lives.
    fn loses_server(
        &self,
        servers: &mut Vec<Server>,
        (backend, netns): (&str, &NetNs),
    ) -> Result<()> {
        let senders = Sender::both(self.netns, self.vip, "h2")?;
        let died = (Instant::now(), "a server that ended");
        servers.remove(0).end()?;
        judge(self.lab, &self.load, died, (backend, PORT, self.once))?;
        senders.into_iter().try_for_each(|it| it.moves(died, "h2"))?;
        let back = Instant::now();
        servers.insert(0, Server::start(netns, "h2")?);
        self.load.answered(back, &HOSTS, 100)?;
        tell(&format!("it is back after {:.0?}", back.elapsed()));
        Ok(())
    }

    /// All of h4 falls silent, and is there again.
    fn loses_host(&self) -> Result<()> {
        let senders = Sender::both(self.netns, self.vip, "h4")?;
        let died = (Instant::now(), "a host that was cut off");
        self.lab.lab(&["cut", "h4"])?;
        judge(self.lab, &self.load, died, ("h4", NODE, self.once))?;
        senders.into_iter().try_for_each(|it| it.moves(died, "h4"))?;
        self.lab.lab(&["heal"])?;
        self.load.answered(Instant::now(), &HOSTS, 100)
    }
}

#[test]
fn nobody_is_sent_to_a_dead_backend() -> Result<()> {
    let lab = Lab::up(4)?;
    let (backends, client, vip) = served(&lab, true)?;
    let ids: Vec<String> = backends.iter().map(|it| it.endpoint.id.short()).collect();
    let of = |at: usize| ids[at].as_str();
    let mut servers = Vec::new();
    for (plugged, host) in backends.iter().zip(HOSTS).take(2) {
        servers.push(Server::start(&plugged.netns, host)?);
    }
    let load = Load::start(&client.netns, vip)?;
    // The last server starts after its sandbox was plugged in, and has answered nobody yet.
    wait_until("the client's node gives it up", || {
        Ok(lab.log("h1")?.lines().any(|line| line.contains(PORT) && line.contains(of(2))))
    })?;
    let begun = Instant::now();
    servers.push(Server::start(&backends[2].netns, HOSTS[2])?);
    load.answered(begun, &HOSTS, 100)?;
    tell(&format!("a server that started late is there after {:.0?}", begun.elapsed()));
    let once = load.once();
    let client = Client { lab: &lab, netns: &client.netns, vip, load, once };
    client.loses_server(&mut servers, (of(0), &backends[0].netns))?;
    let load = &client.load;

    // The sandbox drops what would begin a connection.
    let died = (Instant::now(), "a sandbox that drops SYNs");
    sh(
        &backends[1].netns,
        "nft 'add table inet t; add chain inet t c { type filter hook input priority 0; }; \
         add rule inet t c tcp flags & (syn|ack) == syn drop'",
    )?;
    judge(&lab, load, died, (of(1), PORT, once))?;
    let back = Instant::now();
    sh(&backends[1].netns, "nft delete table inet t")?;
    load.answered(back, &HOSTS, 100)?;
    tell(&format!("it is back after {:.0?}", back.elapsed()));

    // The agent alone.
    let senders = Sender::both(client.netns, vip, "h4")?;
    let died = (Instant::now(), "an agent that was killed");
    lab.lab(&["kill", "h4"])?;
    judge(&lab, load, died, ("h4", NODE, once))?;
    senders.into_iter().try_for_each(|it| it.moves(died, "h4"))?;
    lab.lab(&["start", "h4"])?;
    let back = Instant::now();
    load.answered(back, &HOSTS, 100)?;
    tell(&format!("it is back {:.0?} after its start", back.elapsed()));

    client.loses_host()?;
    client.load.end()?;
    for server in servers {
        server.end()?;
    }
    lab.finish(MENDED)
}

/// What is left of a server that ended and a host that was cut off, by IPv6 alone.
#[test]
fn nobody_is_sent_to_a_dead_backend_by_ipv6() -> Result<()> {
    let lab = Lab::up(4)?;
    let (backends, client, vip) = served(&lab, false)?;
    let start = |(plugged, host): (&Plugged, _)| Server::start(&plugged.netns, host);
    let mut servers: Vec<Server> = backends.iter().zip(HOSTS).map(start).collect::<Result<_>>()?;
    let (begun, load) = (Instant::now(), Load::start(&client.netns, vip)?);
    load.answered(begun, &HOSTS, 100)?;
    let once = load.once();
    let client = Client { lab: &lab, netns: &client.netns, vip, load, once };
    let ended = backends[0].endpoint.id.short();
    client.loses_server(&mut servers, (&ended, &backends[0].netns))?;
    client.loses_host()?;
    client.load.end()?;
    servers.into_iter().try_for_each(Server::end)?;
    lab.finish(MENDED)
}
