//! Backends that die without a word: the other backends get the new connections before gossip
//! knows.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream},
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
/// What the issue of services asks for. A test fails at ten times this only.
const GOAL: Duration = Duration::from_millis(500);
/// A connection that took longer was asked for twice, unless all take long on a busy machine.
const AGAIN: Duration = Duration::from_millis(900);

/// What the log says of a port, and of a node, that gets no new connections.
const PORT: &str = "accepts nothing";
const NODE: &str = "answers nothing";

/// A server that says its host's name to each client.
struct Server {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Server {
    fn start(netns: &NetNs, name: &'static str) -> Result<Self> {
        let listener = netns.run(|| Ok(listen((Ipv6Addr::UNSPECIFIED, 8080))?))?;
        listener.set_nonblocking(true)?;
        let ends = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ends);
        let serve = move || {
            while !end.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A client may be gone.
                    Ok((mut client, _)) => drop(client.write_all(name.as_bytes())),
                    Err(_) => thread::sleep(Duration::from_millis(1)),
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
    load.answered(died + 10 * GOAL, &[], 50)?;
    let (last, failed, late) = load.read(|requests| {
        let since = |request: &Request| request.at.saturating_duration_since(died);
        let after = requests.iter().filter(|request| request.at >= died);
        let troubled = |it: &&Request| it.answer.is_none() || it.took >= once;
        let last = after.clone().filter(troubled).map(since).max().unwrap_or_default();
        let failed: Vec<Duration> = after.filter(|it| it.answer.is_none()).map(since).collect();
        let late = failed.iter().filter(|at| **at > 10 * GOAL).count();
        (last, failed, late)
    });
    tell(&format!(
        "{what}: the last new connection to it after {last:.0?}; {} requests failed, begun within {:.0?}",
        failed.len(),
        failed.iter().max().copied().unwrap_or_default(),
    ));
    ensure!(last < 10 * GOAL && late == 0, "{what}: the last after {last:?}, {failed:?}");
    Ok(())
}

#[test]
fn nobody_is_sent_to_a_dead_backend() -> Result<()> {
    let lab = Lab::up(4)?;
    let create = ["network", "create", "blue", "--subnet", "10.74.0.0/24"];
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
    let mut make = vec!["service", "create", "web", "--network", "blue", "--port", "80:8080"];
    make.extend(["--backend", "on-h2", "--backend", "on-h3", "--backend", "on-h4"]);
    let web: Service = lab.json("h1", &make)?;
    settled(&lab, "web", 3)?;
    let ids: Vec<String> = backends.iter().map(|it| it.endpoint.id.to_string()).collect();
    let of = |at: usize| ids[at].as_str();
    let mut servers = Vec::new();
    for (plugged, host) in backends.iter().zip(HOSTS).take(2) {
        servers.push(Server::start(&plugged.netns, host)?);
    }
    let load = Load::start(&client.netns, web.vips[0])?;
    // The last server starts after its sandbox was plugged in, and has answered nobody yet.
    wait_until("the client's node gives it up", || {
        Ok(lab.log("h1")?.lines().any(|line| line.contains(PORT) && line.contains(of(2))))
    })?;
    let begun = Instant::now();
    servers.push(Server::start(&backends[2].netns, HOSTS[2])?);
    load.answered(begun, &HOSTS, 100)?;
    tell(&format!("a server that started late is there after {:.0?}", begun.elapsed()));
    let once = load.once();

    // The server ends, and its sandbox lives.
    let died = Instant::now();
    servers.remove(0).end()?;
    judge(&lab, &load, (died, "a server that ended"), (of(0), PORT, once))?;
    let back = Instant::now();
    servers.insert(0, Server::start(&backends[0].netns, "h2")?);
    load.answered(back, &HOSTS, 100)?;
    tell(&format!("it is back after {:.0?}", back.elapsed()));

    // The sandbox drops what would begin a connection.
    let died = Instant::now();
    sh(
        &backends[1].netns,
        "nft 'add table inet t; add chain inet t c { type filter hook input priority 0; }; \
         add rule inet t c tcp flags & (syn|ack) == syn drop'",
    )?;
    judge(&lab, &load, (died, "a sandbox that drops SYNs"), (of(1), PORT, once))?;
    let back = Instant::now();
    sh(&backends[1].netns, "nft delete table inet t")?;
    load.answered(back, &HOSTS, 100)?;
    tell(&format!("it is back after {:.0?}", back.elapsed()));

    // The agent alone.
    let died = Instant::now();
    lab.lab(&["kill", "h4"])?;
    judge(&lab, &load, (died, "an agent that was killed"), ("h4", NODE, once))?;
    lab.lab(&["start", "h4"])?;
    let back = Instant::now();
    load.answered(back, &HOSTS, 100)?;
    tell(&format!("it is back {:.0?} after its start", back.elapsed()));

    // Silence.
    let died = Instant::now();
    lab.lab(&["cut", "h4"])?;
    judge(&lab, &load, (died, "a host that was cut off"), ("h4", NODE, once))?;
    lab.lab(&["heal"])?;
    load.answered(Instant::now(), &HOSTS, 100)?;
    load.end()?;
    for server in servers {
        server.end()?;
    }
    lab.finish(Allowed {
        drops: &["backend_unknown", "no_session", "unknown_index", "unknown_peer"],
        ..Allowed::default()
    })
}
