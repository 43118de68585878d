//! Runs the checks of services whose backends are here, and tells the mesh what comes of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use http_body_util::Empty;
use hyper::{Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    sync::watch::Receiver,
    task::{JoinSet, block_in_place},
    time::{sleep, timeout},
};
use tracing::{info, warn};
use vxmesh_proto::{
    addr::{EndpointId, ServiceId},
    lb::{Protocol, health::Checked},
    object::HealthCheck,
    record::{Claim, EVERY_SERVICE, EndpointClaim, Key},
    tables::RowKey,
};

use super::{Services, backends::global_ips, lock, reach};
use crate::{
    daemon::Mesh,
    store::{Store, StoreError, Table},
};

/// Where what was told is kept.
const KEY: &str = "health";
/// How often services and endpoints are looked at for what is to be checked although nobody said
/// that they changed, and how often at most while they change. Each look goes through all endpoints
/// of networks with services.
const FOLLOW: Duration = Duration::from_secs(5);
const CHANGED: Duration = Duration::from_millis(100);

/// How long what the agent's last life told stands, if nothing else is known: until all members
/// were heard and all endpoints taken over.
const LAST_LIFE: Duration = Duration::from_secs(30);
/// Checks that run at once; the others wait.
const CHECKS_AT_ONCE: usize = 64;
/// Between two looks.
const SHORTEST: Duration = Duration::from_millis(10);

/// A check that is to be run, with where its backend is.
type Wanted = BTreeMap<Checked, (HealthCheck, PathBuf, SocketAddr)>;

/// Checks until the agent stops.
pub(crate) async fn check(mesh: Arc<Mesh>, mut stop: Receiver<bool>) {
    let (begun, mut last_life, mut followed) = (Instant::now(), true, None);
    let (mut wanted, mut running, mut changed) = (Wanted::new(), JoinSet::new(), false);
    loop {
        let now = Instant::now();
        let every = if changed { CHANGED } else { FOLLOW };
        if followed.is_none_or(|at: Instant| now.saturating_duration_since(at) >= every) {
            changed = false;
            let here;
            (wanted, here) = self::wanted(&mesh);
            let each = wanted.iter().map(|(of, (check, ..))| (*of, check.clone()));
            lock(&mesh.services.checks).follow(now, &each.collect(), |of| here.contains(of));
            followed = Some(now);
        }
        if last_life && now.saturating_duration_since(begun) >= LAST_LIFE {
            last_life = false;
            lock(&mesh.services.checks).forget_last_life();
        }
        let room = CHECKS_AT_ONCE.saturating_sub(running.len());
        let (due, next) = {
            let mut checks = lock(&mesh.services.checks);
            (checks.poll(now, room), checks.poll_timeout())
        };
        for (of, check) in due {
            let Some((_, netns, at)) = wanted.get(&of).cloned() else {
                lock(&mesh.services.checks).handle_result(now, of, false);
                continue;
            };
            running.spawn(async move { (of, passes(&check, netns, at).await) });
        }
        tell(&mesh);
        let most = if changed { CHANGED } else { FOLLOW };
        let wait = next.map_or(most, |at| at.saturating_duration_since(Instant::now()));
        tokio::select! {
            () = sleep(wait.clamp(SHORTEST, most)) => {}
            () = mesh.services.changed.for_checks(), if !changed => changed = true,
            Some(Ok((of, passed))) = running.join_next(), if !running.is_empty() => {
                lock(&mesh.services.checks).handle_result(Instant::now(), of, passed);
            }
            _ = stop.changed() => return,
        }
    }
}

/// What is to be checked on this node, and all services of the endpoints that are here.
fn wanted(mesh: &Mesh) -> (Wanted, BTreeSet<Checked>) {
    let (mut wanted, mut here) = (Wanted::new(), BTreeSet::new());
    for (network, specs) in mesh.services.known().into_iter().filter(|(_, it)| !it.is_empty()) {
        let claims = mesh.member.claims_of(network);
        let own: Vec<_> = claims.iter().filter(|(key, _)| key.node == mesh.member.me).collect();
        for spec in specs.iter() {
            here.extend(own.iter().map(|(key, _)| (key.endpoint, spec.id)));
            let port = spec.ports.iter().find(|port| port.protocol == Protocol::Tcp);
            let Some((check, port)) = check_of(mesh, spec.id).zip(port) else { continue };
            let is_its = |key: &RowKey| spec.backends.iter().any(|backend| backend.key == *key);
            for (key, claim) in own.iter().filter(|(key, _)| is_its(key)) {
                if let Some(ip) = global_ips(&claim.ips).next() {
                    let at = SocketAddr::new(ip, port.backend_port);
                    let to = (check.clone(), mesh.netns_of(network), at);
                    wanted.insert((key.endpoint, spec.id), to);
                }
            }
        }
    }
    (wanted, here)
}

fn check_of(mesh: &Mesh, id: ServiceId) -> Option<HealthCheck> {
    mesh.member.objects.read(|set| set.service(id)?.check.clone())
}

async fn passes(check: &HealthCheck, netns: PathBuf, at: SocketAddr) -> bool {
    let attempt = async {
        let stream = reach::connect(&netns, at).await?;
        match &check.path {
            Some(path) => get(stream, at, path).await,
            None => Ok(()),
        }
    };
    let passed = timeout(Duration::from_millis(check.timeout_ms), attempt).await;
    passed.is_ok_and(|passed| passed.is_ok())
}

/// Asks for a page: what is found, or found elsewhere, is well (RFC 9110 section 15).
async fn get(stream: TcpStream, at: SocketAddr, path: &str) -> io::Result<()> {
    let request = Request::get(path)
        .header(header::HOST, at.to_string())
        .header(header::USER_AGENT, "vxmesh-health")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(io::Error::other)?;
    let mut answer = pin!(sender.send_request(request));
    // The status is enough: the rest of the answer is not waited for. The connection may end
    // before the answer is looked at, which is there all the same.
    let answer = tokio::select! {
        answer = &mut answer => answer,
        _ended = connection => answer.await,
    };
    let status = answer.map_err(io::Error::other)?.status();
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    Err(io::Error::other(status.to_string()))
}

/// Tells the mesh what changed, once a second of each endpoint, and remembers it.
pub(super) fn tell(mesh: &Mesh) {
    let (told, all) = {
        let mut checks = lock(&mesh.services.checks);
        let told = checks.poll_told(Instant::now());
        let all = (!told.is_empty()).then(|| checks.to_remember());
        (told, all)
    };
    for (endpoint, health) in told {
        mesh.member.republish(Key::Endpoint(endpoint), |claim| {
            let Claim::Endpoint(claim) = claim else { return None };
            // What is said of one that goes stays.
            (claim.health != health && !mesh.is_going(claim.id)).then(|| {
                tell_log(mesh, claim, &health);
                Claim::Endpoint(EndpointClaim { health, ..claim.clone() })
            })
        });
    }
    if let Some(all) = all
        && let Err(error) = block_in_place(|| mesh.store.put(Table::Meta, KEY, &all))
    {
        warn!(%error, "what checks found is not kept for the agent's next start; see its disk");
    }
}

fn tell_log(mesh: &Mesh, claim: &EndpointClaim, health: &BTreeMap<String, bool>) {
    let named = |short: &str| {
        let name = mesh.member.objects.read(|set| {
            let services = set.services(claim.network);
            let of = services.into_iter().find(|of| of.id.short() == short)?;
            Some(of.service.name.to_string())
        });
        name.unwrap_or_else(|| short.to_owned())
    };
    let changed = health.iter().filter(|(short, is)| claim.health.get(*short) != Some(*is));
    for (short, is_healthy) in changed {
        let endpoint = &claim.name;
        if short == EVERY_SERVICE {
            info!(%endpoint, "the endpoint does not work or ends: it gets no new connections");
            continue;
        }
        let service = named(short);
        if *is_healthy {
            info!(%endpoint, service, "the backend is healthy");
        } else {
            warn!(%endpoint, service, "the backend is not healthy: it gets no new connections");
        }
    }
}

impl Services {
    /// What the others are told of an endpoint's health.
    pub(crate) fn health_of(&self, endpoint: EndpointId) -> BTreeMap<String, bool> {
        lock(&self.checks).health(endpoint)
    }

    /// Somebody says whether a backend works; for this long, if not until something else is said.
    pub(super) fn take_word(&self, of: Checked, word: Option<bool>, ttl: Option<Duration>) {
        let now = Instant::now();
        let until = ttl.and_then(|ttl| now.checked_add(ttl));
        lock(&self.checks).handle_word(now, of, word, until);
        self.changed.notify_checks();
    }

    /// Who runs an endpoint says whether it works at all.
    pub(crate) fn tell_endpoint(&self, mesh: &Mesh, endpoint: EndpointId, works: bool) {
        // What cannot be read forgets nothing.
        let rows = mesh.endpoint_rows().ok();
        let is_here =
            |id: &EndpointId| rows.as_ref().is_none_or(|rows| rows.iter().any(|row| row.id == *id));
        lock(&self.checks).handle_endpoint(endpoint, works, is_here);
        tell(mesh);
        // What may not be told yet is told in time.
        self.changed.notify_checks();
    }

    /// Forgets what was said of an endpoint that ends.
    pub(crate) fn forget_endpoint(&self, endpoint: EndpointId) {
        lock(&self.checks).handle_endpoint(endpoint, true, |_| true);
    }

    /// What was told in the agent's last life.
    pub(super) fn load_health(store: &Store) -> Result<Remembered, StoreError> {
        Ok(store.get(Table::Meta, KEY)?.unwrap_or_default())
    }

    /// Forgets it.
    pub(crate) fn forget_health(store: &Store) -> Result<(), StoreError> {
        store.delete(Table::Meta, KEY).map(drop)
    }
}

/// The health of endpoints by the short ids of services.
type Remembered = BTreeMap<EndpointId, BTreeMap<String, bool>>;

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// What the check makes of a server that writes all of its answer at once.
    async fn asked(answer: &'static str) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let serve = async {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let len = client.read(&mut request).await.unwrap();
            assert!(request[..len].starts_with(b"GET /well HTTP/1.1\r\n"));
            client.write_all(answer.as_bytes()).await.unwrap();
        };
        let ask = async {
            let stream = TcpStream::connect(at).await.unwrap();
            get(stream, at, "/well").await.is_ok()
        };
        tokio::join!(serve, ask).1
    }

    #[tokio::test]
    async fn a_page_is_well_if_it_is_there_or_elsewhere() {
        for (answer, well) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell", true),
            ("HTTP/1.1 204 No Content\r\n\r\n", true),
            ("HTTP/1.0 200 OK\r\n\r\nwell", true),
            ("HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", true),
            ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", false),
            ("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", false),
            ("SSH-2.0-OpenSSH\r\n", false),
            ("", false),
        ] {
            assert_eq!(asked(answer).await, well, "{answer:?}");
        }
    }
}
