//! Runs the checks of services whose backends are here, and tells the mesh what comes of them.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use http_body_util::Empty;
use hyper::{Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    sync::watch::Receiver,
    time::{sleep, timeout},
};
use tracing::{info, warn};
use vxmesh_gossip::directory::Directory;
use vxmesh_proto::{
    addr::{EndpointId, ServiceId},
    lb::{Protocol, health::Checked},
    object::{Content, HealthCheck, ObjectId},
    record::{Claim, EndpointClaim, Key},
    tables::RowKey,
};

use super::{Services, backends::global_ip, lock, reach};
use crate::daemon::Mesh;

/// How often services and endpoints are looked at for what is to be checked.
const FOLLOW: Duration = Duration::from_secs(1);

/// A check that is to be run, with where its backend is.
type Wanted = BTreeMap<Checked, (HealthCheck, PathBuf, SocketAddr)>;

/// Checks until the agent stops.
pub(crate) async fn check(mesh: Arc<Mesh>, mut stop: Receiver<bool>) {
    loop {
        let (wanted, here) = wanted(&mesh);
        let now = Instant::now();
        let (due, next) = {
            let mut checks = lock(&mesh.services.checks);
            let each = wanted.iter().map(|(of, (check, ..))| (*of, check.clone()));
            checks.follow(now, &each.collect(), |of| here.contains(of));
            (checks.poll(now), checks.poll_timeout())
        };
        for (of, check) in due {
            let Some((_, netns, at)) = wanted.get(&of).cloned() else { continue };
            let mesh = Arc::clone(&mesh);
            tokio::spawn(async move {
                let passed = passes(&check, netns, at).await;
                lock(&mesh.services.checks).handle_result(Instant::now(), of, passed);
                tell(&mesh);
            });
        }
        tell(&mesh);
        let wait = next.map_or(FOLLOW, |at| at.saturating_duration_since(Instant::now()));
        tokio::select! {
            () = sleep(wait.clamp(Duration::from_millis(10), FOLLOW)) => {}
            _ = stop.changed() => return,
        }
    }
}

/// What is to be checked on this node, and all backends that are here.
fn wanted(mesh: &Mesh) -> (Wanted, BTreeSet<Checked>) {
    let (mut wanted, mut here) = (Wanted::new(), BTreeSet::new());
    for (network, specs) in mesh.services.known() {
        let claims = OnceCell::new();
        for spec in specs.iter() {
            let own = spec.backends.iter().filter(|backend| backend.key.node == mesh.me);
            let own: Vec<RowKey> = own.map(|backend| backend.key).collect();
            here.extend(own.iter().map(|key| (spec.id, key.endpoint)));
            let port = spec.ports.iter().find(|port| port.protocol == Protocol::Tcp);
            let check = (!own.is_empty()).then(|| check_of(mesh, spec.id)).flatten();
            let Some((check, port)) = check.zip(port) else { continue };
            for key in own {
                let claims = claims.get_or_init(|| mesh.claims_of(network));
                if let Some(ip) = claims.get(&key).and_then(|claim| global_ip(&claim.ips)) {
                    let at = SocketAddr::new(ip, port.backend_port);
                    let to = (check.clone(), mesh.netns_of(network), at);
                    wanted.insert((spec.id, key.endpoint), to);
                }
            }
        }
    }
    (wanted, here)
}

fn check_of(mesh: &Mesh, id: ServiceId) -> Option<HealthCheck> {
    mesh.objects.read(|set| match set.get(&ObjectId::Service(id))?.content() {
        Content::Service(service) => service.check.clone(),
        _ => None,
    })
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
    // The status is enough: the rest of the answer is not waited for.
    let answer = tokio::select! {
        answer = sender.send_request(request) => answer.map_err(io::Error::other)?,
        _ended = connection => return Err(io::ErrorKind::ConnectionReset.into()),
    };
    let status = answer.status();
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    Err(io::Error::other(status.to_string()))
}

/// Tells the mesh what changed, once a second of each endpoint.
pub(super) fn tell(mesh: &Mesh) {
    let told = lock(&mesh.services.checks).poll_told(Instant::now());
    for (endpoint, health) in told {
        let of = |directory: &Directory| {
            let entry = directory.get(mesh.me, Key::Endpoint(endpoint))?;
            match entry.record.claim() {
                Claim::Endpoint(claim) => Some(claim.clone()),
                Claim::Node(_) | Claim::Gone => None,
            }
        };
        let claim = mesh.gossip.get().and_then(|gossip| gossip.with_directory(of));
        let Some(claim) = claim.filter(|claim| claim.health != health) else { continue };
        tell_log(mesh, &claim, &health);
        mesh.republish(&Claim::Endpoint(EndpointClaim { health, ..claim }));
    }
}

fn tell_log(mesh: &Mesh, claim: &EndpointClaim, health: &BTreeMap<String, bool>) {
    let named = |short: &str| {
        let name = mesh.objects.read(|set| {
            let services = set.services(claim.network);
            let of = services.into_iter().find(|of| of.id.short() == short)?;
            Some(of.service.name.to_string())
        });
        name.unwrap_or_else(|| short.to_owned())
    };
    let changed = health.iter().filter(|(short, is)| claim.health.get(*short) != Some(*is));
    for (short, is_healthy) in changed {
        let (service, endpoint) = (named(short), &claim.name);
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
    pub(super) fn take_word(&self, of: Checked, word: bool, ttl: Option<Duration>) {
        let now = Instant::now();
        let until = ttl.and_then(|ttl| now.checked_add(ttl));
        lock(&self.checks).handle_word(now, of, word, until);
    }
}
