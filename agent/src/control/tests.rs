//! Whole control planes on loopback, over real QUIC.

mod joins;

use std::{collections::HashMap, future::Future, path::Path, sync::Mutex};

use quinn::{ClientConfig, Endpoint, EndpointConfig};
use tokio::time::{Instant, sleep, timeout};
use vxmesh_proto::control::{
    ANONYMOUS_LEN, GOSSIP_LEN, REQUEST_LEN, RESPONSE_LEN, RefusalCode, decode, encode,
};

use super::{
    join::{JoinOptions, join},
    *,
};
use crate::identity::{
    Certified, Membership, MeshCa, Psk, certificate,
    token::{self, Token},
    unix_now,
};

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Seen {
    gossip: Vec<(Caller, Bytes)>,
    pushes: Vec<(Caller, Push)>,
    newcomers: Vec<Newcomer>,
    connected: Vec<NodeId>,
    disconnected: Vec<NodeId>,
    renewed: usize,
    /// Who was removed.
    removed: Option<NodeId>,
    words: Vec<String>,
    issuers: Vec<NodeId>,
    namesake: Option<Namesake>,
}

#[derive(Default)]
struct Recorder(Mutex<Seen>);

impl Recorder {
    fn seen<R>(&self, look: impl FnOnce(&mut Seen) -> R) -> R {
        look(&mut self.0.lock().unwrap())
    }
}

#[async_trait]
impl Service for Recorder {
    async fn handle(&self, from: Caller, request: Request) -> Response {
        match request {
            Request::ObjectsPush { mut objects } => {
                objects.push(from.node.to_string());
                Response::Objects { objects }
            }
            Request::BlockRequest { .. } => {
                Response::Objects { objects: vec!["x".repeat(RESPONSE_LEN)] }
            }
            Request::Map => std::future::pending().await,
            _ => Response::refuse(RefusalCode::Unsupported, "not in this test"),
        }
    }

    fn handle_gossip(&self, from: Caller, bytes: Bytes) {
        self.seen(|seen| seen.gossip.push((from, bytes)));
    }

    fn handle_push(&self, from: Caller, push: Push) {
        self.seen(|seen| seen.pushes.push((from, push)));
    }

    fn members(&self) -> Vec<MemberInfo> {
        Vec::new()
    }

    fn issuers(&self) -> Vec<NodeId> {
        self.seen(|seen| seen.issuers.clone())
    }

    fn namesake(&self, _: &Name) -> Option<Namesake> {
        self.seen(|seen| seen.namesake)
    }

    fn handle_newcomer(&self, newcomer: Newcomer) {
        self.seen(|seen| seen.newcomers.push(newcomer));
    }

    fn handle_connected(&self, member: &Member, certificate: &[u8], _: SocketAddr) {
        assert!(!certificate.is_empty());
        self.seen(|seen| seen.connected.push(member.node_id));
    }

    fn handle_disconnected(&self, node: NodeId) {
        self.seen(|seen| seen.disconnected.push(node));
    }

    fn handle_renewed(&self, _: &[u8]) {
        self.seen(|seen| seen.renewed += 1);
    }

    fn removal(&self, node: NodeId) -> Option<String> {
        self.seen(|seen| seen.removed == Some(node)).then(|| format!("{node} was removed"))
    }

    fn handle_removal(&self, _: NodeId, word: String) {
        self.seen(|seen| seen.words.push(word));
    }
}

struct Node {
    control: Control,
    service: Arc<Recorder>,
    store: Arc<Store>,
    credentials: Arc<Credentials>,
    dir: tempfile::TempDir,
}

impl Node {
    fn start(dir: tempfile::TempDir, limits: JoinLimits, bind: SocketAddr) -> Self {
        let credentials = Arc::new(Credentials::load(dir.path()).unwrap().unwrap());
        let store = Arc::new(Store::open(&dir.path().join("state.redb")).unwrap());
        let service = Arc::new(Recorder::default());
        let config = ControlConfig {
            credentials: Arc::clone(&credentials),
            data_dir: dir.path().into(),
            store: Arc::clone(&store),
            bind,
            advertise: None,
            join_limits: limits,
        };
        let control = Control::start(config, Arc::clone(&service) as Arc<dyn Service>).unwrap();
        Self { control, service, store, credentials, dir }
    }

    fn first() -> Self {
        Self::first_with(JoinLimits::default())
    }

    fn first_with(limits: JoinLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Credentials::init(dir.path(), unix_now()).unwrap();
        Self::start(dir, limits, loopback(0))
    }

    async fn joined_through(server: &Self, token: &Token) -> Self {
        let dir = tempfile::tempdir().unwrap();
        join(dir.path(), &options(token, server.addr())).await.unwrap();
        Self::start(dir, JoinLimits::default(), loopback(0))
    }

    fn id(&self) -> NodeId {
        self.credentials.identity.node_id()
    }

    fn addr(&self) -> SocketAddr {
        self.control.local_addr()
    }

    fn token(&self, uses: Option<u32>) -> Token {
        self.token_at(unix_now(), uses)
    }

    fn token_at(&self, now: u64, uses: Option<u32>) -> Token {
        token::create(&self.store, &self.credentials.membership.ca, now, 60, uses).unwrap().0
    }

    fn wants(&self, other: &Self) {
        self.control.set_peers([(other.id(), other.addr())]);
    }

    fn state_of(&self, node: NodeId) -> Option<PeerState> {
        self.control.peers().into_iter().find(|peer| peer.node == node)
    }

    fn is_connected_with(&self, other: &Self) -> bool {
        self.state_of(other.id()).is_some_and(|state| state.connected)
    }

    async fn ping(&self, node: NodeId) -> Result<Response, ControlError> {
        self.control.request(node, &Request::Ping, PATIENCE).await
    }

    async fn stop(self) -> tempfile::TempDir {
        let (addr, state) = (self.addr(), self.dir.path().join("state.redb"));
        let Self { control, service, store, credentials, dir } = self;
        control.stop().await;
        drop((control, service, store, credentials));
        // The last tasks see the end a moment later.
        until("port and store are free", || {
            std::net::UdpSocket::bind(addr).is_ok() && Store::open(&state).is_ok()
        })
        .await;
        dir
    }
}

fn block_request() -> Request {
    Request::BlockRequest {
        network: vxmesh_proto::addr::NetworkId::from_random([1; 16]),
        subnet: "10.0.0.0/24".parse().unwrap(),
        want: 1,
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn options(token: &Token, server: SocketAddr) -> JoinOptions {
    JoinOptions {
        token: token.clone(),
        servers: vec![server.to_string()],
        name: "h2".parse().unwrap(),
        control_port: 7760,
        advertise: None,
    }
}

async fn until(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn pair() -> (Node, Node) {
    let first = Node::first();
    let second = Node::joined_through(&first, &first.token(None)).await;
    (first, second)
}

/// Runs two nodes' worth of QUIC on one thread of tokio, as small hosts do.
#[tokio::test]
async fn a_node_joins_and_both_ask_each_other_over_one_connection() {
    let (first, second) = pair().await;
    assert_eq!(second.credentials.membership.mesh_id, first.credentials.membership.mesh_id);
    assert_eq!(second.credentials.membership.psk.key(), first.credentials.membership.psk.key());
    let known = &second.credentials.membership.peers;
    assert_eq!(known.len(), 1);
    assert_eq!((known[0].node, known[0].addrs[0]), (first.id(), first.addr()));
    let newcomer = first.service.seen(|seen| seen.newcomers.remove(0));
    assert_eq!(newcomer.member.node_id, second.id());
    assert_eq!(newcomer.addr, loopback(7760));

    second.wants(&first);
    let answer = second
        .control
        .request(first.id(), &Request::ObjectsPush { objects: vec!["o".into()] }, PATIENCE)
        .await
        .unwrap();
    assert_eq!(answer, Response::Objects { objects: vec!["o".into(), second.id().to_string()] });
    assert_eq!(first.ping(second.id()).await.unwrap(), Response::Pong);
    let member = first.control.member(second.id()).unwrap();
    assert_eq!(member.noise_public, *second.credentials.identity.noise_public());
    assert!(first.state_of(second.id()).unwrap().rtt.is_some());
    assert_eq!(first.service.seen(|seen| seen.connected.clone()), vec![second.id()]);
}

#[tokio::test]
async fn gossip_of_every_size_and_pushes_arrive() {
    let (first, second) = pair().await;
    assert!(!second.control.send_gossip(first.id(), Bytes::from_static(b"x")));
    second.wants(&first);
    second.ping(first.id()).await.unwrap();
    let sizes = [0, 1, 1000, 1500, 20_000, GOSSIP_LEN];
    for (i, size) in sizes.into_iter().enumerate() {
        let bytes = Bytes::from(vec![u8::try_from(i).unwrap(); size]);
        assert!(second.control.send_gossip(first.id(), bytes.clone()));
        until("gossip arrived", || {
            first.service.seen(|seen| {
                seen.gossip.iter().any(|(from, got)| from.node == second.id() && *got == bytes)
            })
        })
        .await;
    }
    assert!(!second.control.send_gossip(first.id(), Bytes::from(vec![0; GOSSIP_LEN + 1])));
    assert_eq!(second.state_of(first.id()).unwrap().dropped, 1);

    let push = Push {
        records: vec![(first.id(), "k".into(), "signed".into())],
        objects: vec!["o".into()],
    };
    assert!(first.control.push(second.id(), &push).unwrap());
    until("the push arrived", || {
        second.service.seen(|seen| seen.pushes.iter().any(|(_, got)| *got == push))
    })
    .await;
    let stranger = NodeId::of_public_key(b"nobody");
    assert!(!first.control.push(stranger, &push).unwrap());
    let large =
        Push { records: vec![(first.id(), "k".into(), "x".repeat(300 << 10))], objects: vec![] };
    assert!(matches!(first.control.push(second.id(), &large), Err(ControlError::Codec(_))));
}

#[tokio::test]
async fn a_push_waits_for_the_connection() {
    let (first, second) = pair().await;
    let push = Push { records: vec![(first.id(), "k".into(), "signed".into())], objects: vec![] };
    second.wants(&first);
    assert!(second.control.push(first.id(), &push).unwrap());
    until("the push arrived", || first.service.seen(|seen| seen.pushes.len() == 1)).await;
}

#[tokio::test]
async fn requests_fail_in_their_own_ways() {
    let (first, second) = pair().await;
    let short = Duration::from_millis(200);
    let missing = second.control.request(first.id(), &Request::Ping, short).await;
    assert!(matches!(missing, Err(ControlError::NotConnected(_))));
    let dead = std::net::UdpSocket::bind(loopback(0)).unwrap();
    let nobody = NodeId::of_public_key(b"nobody");
    second.control.set_peers([(nobody, dead.local_addr().unwrap()), (first.id(), first.addr())]);
    let unreachable = second.control.request(nobody, &Request::Ping, short).await;
    assert!(matches!(unreachable, Err(ControlError::NotConnected(_))));
    second.ping(first.id()).await.unwrap();
    let late = second.control.request(first.id(), &Request::Map, short).await;
    assert!(matches!(late, Err(ControlError::Timeout(..))));
    let refused = second.control.request(first.id(), &Request::Leave, PATIENCE).await;
    assert!(matches!(refused, Err(ControlError::Refused(_))));
    let large = Request::ObjectsPush { objects: vec!["x".repeat(REQUEST_LEN)] };
    let large = second.control.request(first.id(), &large, PATIENCE).await;
    assert!(matches!(large, Err(ControlError::Codec(_))));
    let answer = block_request();
    let Err(ControlError::Refused(refusal)) =
        second.control.request(first.id(), &answer, PATIENCE).await
    else {
        panic!("an answer above the limit came through");
    };
    assert!(refusal.message.contains("above the limit"), "{}", refusal.message);
}

#[tokio::test]
async fn whoever_answers_must_be_the_node_that_was_dialed() {
    let (first, second) = pair().await;
    let third = Node::joined_through(&first, &first.token(None)).await;
    // The address of one, the name of the other.
    second.control.set_peers([(third.id(), first.addr())]);
    until("an error is on record", || {
        second.state_of(third.id()).is_some_and(|state| state.last_error.is_some())
    })
    .await;
    let state = second.state_of(third.id()).unwrap();
    assert!(!state.connected);
    assert!(first.service.seen(|seen| seen.connected.is_empty()));
}

#[tokio::test]
async fn both_dialing_at_once_end_with_one_connection() {
    let (first, second) = pair().await;
    first.wants(&second);
    second.wants(&first);
    for _ in 0..20 {
        let (a, b) = tokio::join!(first.ping(second.id()), second.ping(first.id()));
        assert_eq!((a.unwrap(), b.unwrap()), (Response::Pong, Response::Pong));
    }
    until("one connection is left", || {
        first.control.inner.open_connections() == 1 && second.control.inner.open_connections() == 1
    })
    .await;
    assert!(first.is_connected_with(&second) && second.is_connected_with(&first));
    assert!(first.service.seen(|seen| seen.disconnected.is_empty()));
    assert!(second.service.seen(|seen| seen.disconnected.is_empty()));
}

#[tokio::test]
async fn a_restarted_peer_comes_back_without_joining_again() {
    let (first, second) = pair().await;
    second.wants(&first);
    second.ping(first.id()).await.unwrap();
    let (id, addr) = (first.id(), first.addr());
    let dir = first.stop().await;
    until("the loss is seen", || second.service.seen(|seen| seen.disconnected == [id])).await;
    let first = Node::start(dir, JoinLimits::default(), addr);
    assert_eq!(first.id(), id);
    assert_eq!(second.ping(id).await.unwrap(), Response::Pong);
    first.ping(second.id()).await.unwrap();
}

/// Ending a runtime drops its sockets without a word to anybody, as SIGKILL does.
#[test]
fn a_crashed_peer_is_noticed_when_it_is_back_and_not_after_the_idle_timeout() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (alive, doomed) = (runtime(), runtime());
    let first = doomed.block_on(async { Node::first() });
    let (id, addr) = (first.id(), first.addr());
    let token = first.token(None);
    let second = alive.block_on(Node::joined_through(&first, &token));
    alive.block_on(async {
        second.wants(&first);
        second.ping(id).await.unwrap();
    });
    let Node { control, service, store, credentials, dir } = first;
    doomed.shutdown_timeout(PATIENCE);
    drop((control, service, store, credentials));
    let seconds = alive.block_on(async {
        let first = Node::start(dir, JoinLimits::default(), addr);
        let back = Instant::now();
        while second.control.request(id, &Request::Ping, Duration::from_millis(500)).await.is_err()
        {
            assert!(back.elapsed() < limits::IDLE / 2, "the old connection was kept");
        }
        drop(first);
        back.elapsed()
    });
    println!("answered {seconds:?} after the restart");
}

#[tokio::test]
async fn unwanted_peers_are_forgotten_and_disconnected_ones_come_back() {
    let (first, second) = pair().await;
    second.wants(&first);
    second.ping(first.id()).await.unwrap();
    second.control.disconnect(first.id());
    until("it was noticed", || first.service.seen(|seen| seen.disconnected.len() == 1)).await;
    second.ping(first.id()).await.unwrap();
    assert_eq!(first.service.seen(|seen| seen.connected.len()), 2);
    second.control.set_peers([]);
    second.control.disconnect(first.id());
    until("it is forgotten", || second.control.peers().is_empty()).await;
    until("on both sides", || first.control.peers().is_empty()).await;
}

#[tokio::test]
async fn a_node_never_dials_itself_and_a_stopped_one_does_nothing() {
    let (first, second) = pair().await;
    first.control.set_peers([(first.id(), first.addr())]);
    assert!(first.control.peers().is_empty());
    first.control.stop().await;
    first.wants(&second);
    assert!(first.control.peers().is_empty());
    assert!(matches!(first.ping(second.id()).await, Err(ControlError::NotConnected(_))));
}

#[tokio::test]
async fn a_certificate_is_renewed_by_an_issuer_and_used() {
    let (first, second) = pair().await;
    let error = second.control.renew().await.unwrap_err();
    assert!(matches!(error, ControlError::Refused(_)), "{error}");
    second.wants(&first);
    second.ping(first.id()).await.unwrap();
    let old = second.control.certificate();
    second.control.renew().await.unwrap();
    assert_ne!(second.control.certificate(), old);
    assert_eq!(second.service.seen(|seen| seen.renewed), 1);
    let kept = Credentials::load(second.dir.path()).unwrap().unwrap();
    assert_eq!(kept.membership.certificate, second.control.certificate());
    second.control.disconnect(first.id());
    second.ping(first.id()).await.unwrap();
    first.control.renew().await.unwrap();
    let own = Credentials::load(first.dir.path()).unwrap().unwrap();
    assert!(own.member(unix_now()).unwrap().issuer);
}

/// Credentials of a node that another CA certified, under this mesh's CA certificate.
fn forged_member(dir: &Path, of: &Node) -> Credentials {
    let identity = crate::identity::Identity::generate().unwrap();
    let other = MeshCa::generate(unix_now()).unwrap();
    let node = Certified {
        ed25519_public: identity.ed25519_public(),
        noise_public: *identity.noise_public(),
        aes: true,
        issuer: true,
    };
    let membership = Membership {
        mesh_id: certificate::mesh_id(other.certificate()),
        certificate: other.issue(&node, unix_now()).unwrap(),
        ca: other.certificate().to_vec(),
        psk: Psk::new(1, *of.credentials.membership.psk.key()),
        peers: Vec::new(),
        servers: Vec::new(),
    };
    Credentials::joined(dir, identity, membership).unwrap()
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused_in_both_directions() {
    let first = Node::first();
    let dir = tempfile::tempdir().unwrap();
    forged_member(dir.path(), &first);
    let forger = Node::start(dir, JoinLimits::default(), loopback(0));
    forger.wants(&first);
    first.wants(&forger);
    for (node, other) in [(&first, &forger), (&forger, &first)] {
        until("an error is on record", || {
            node.state_of(other.id()).is_some_and(|state| state.last_error.is_some())
        })
        .await;
        assert!(node.service.seen(|seen| seen.connected.is_empty()));
    }
    // The forger that skips its own check meets the server's.
    let config =
        lax_client(&forger.credentials, Some(&forger.credentials.membership.certificate), &first);
    let error = converse(&config, &first, &encode(&Request::Ping, 100).unwrap()).await;
    assert!(error.is_err(), "{error:?}");
    assert!(first.service.seen(|seen| seen.connected.is_empty()));
}

/// A client that trusts `server` by its CA's digest, with or without a certificate.
fn lax_client(
    credentials: &Credentials,
    certificate: Option<&[u8]>,
    server: &Node,
) -> ClientConfig {
    let ca = &server.credentials.membership.ca;
    let verifier = Arc::new(tls::ByDigest::new(token::sha256(ca)));
    let crypto = match certificate {
        None => tls::joiner(verifier).unwrap(),
        Some(der) => {
            let presented =
                tls::Presented::new(&credentials.identity, der, &credentials.membership.ca);
            tls::joiner_presenting(verifier, Arc::new(presented.unwrap())).unwrap()
        }
    };
    ClientConfig::new(crypto)
}

async fn dial(config: &ClientConfig, server: &Node) -> (Endpoint, quinn::Connection) {
    let socket = endpoint::bind(loopback(0)).unwrap();
    let runtime = quinn::default_runtime().unwrap();
    let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, runtime).unwrap();
    let connecting = endpoint.connect_with(config.clone(), server.addr(), "join.vxmesh").unwrap();
    let connection = connecting.await.unwrap();
    (endpoint, connection)
}

async fn converse(config: &ClientConfig, server: &Node, bytes: &[u8]) -> Result<Response, String> {
    let (_endpoint, connection) = dial(config, server).await;
    let run = async {
        let (mut send, mut receive) = connection.open_bi().await.map_err(|e| e.to_string())?;
        // The server may refuse before it has read all.
        if let Err(error) = send.write_all(bytes).await {
            tracing::debug!(%error, "cut short");
        } else {
            send.finish().map_err(|e| e.to_string())?;
        }
        let bytes = receive.read_to_end(1 << 20).await.map_err(|e| e.to_string())?;
        decode(&bytes, 1 << 20).map_err(|e| e.to_string())
    };
    timeout(PATIENCE, run).await.unwrap()
}

#[tokio::test]
async fn without_a_certificate_only_a_join_is_served() {
    let (first, second) = pair().await;
    let config = lax_client(&second.credentials, None, &first);
    let code = |response: Result<Response, String>| match response {
        Ok(Response::Error(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    };
    for request in [
        Request::Ping,
        Request::Leave,
        Request::Map,
        Request::ObjectsPush { objects: vec![] },
        block_request(),
    ] {
        let bytes = encode(&request, REQUEST_LEN).unwrap();
        assert_eq!(code(converse(&config, &first, &bytes).await), RefusalCode::NotMember);
    }
    for bad in [b"".as_slice(), b"garbage", b"{\"v\":1}", &[0xff; 100], &[b' '; ANONYMOUS_LEN + 1]]
    {
        assert_eq!(code(converse(&config, &first, bad).await), RefusalCode::Malformed);
    }
    // Gossip from a stranger goes nowhere.
    let (_endpoint, connection) = dial(&config, &first).await;
    connection.send_datagram(Bytes::from_static(b"gossip")).unwrap();
    let stream = timeout(Duration::from_millis(300), connection.open_uni()).await;
    assert!(!matches!(stream, Ok(Ok(_))), "a stranger got a one-way stream");
    assert!(first.service.seen(|seen| seen.gossip.is_empty() && seen.connected.is_empty()));
}

#[tokio::test]
async fn a_proof_of_another_connection_or_key_is_refused() {
    let first = Node::first_with(JoinLimits { per_source: 100, total: 100 });
    let token = first.token(Some(1));
    let identity = crate::identity::Identity::generate().unwrap();
    let stranger = Node::first();
    let config = lax_client(&stranger.credentials, None, &first);
    let request = |proof: &[u8]| {
        Request::Join(vxmesh_proto::control::JoinRequest {
            certificate: vxmesh_proto::control::CertificateRequest {
                csr: crate::identity::certificate_request(&identity).unwrap().as_slice().into(),
                noise_public: identity.noise_public().as_slice().into(),
                aes: false,
            },
            secret: token.secret().as_slice().into(),
            proof: proof.into(),
            name: "h2".parse().unwrap(),
            control_port: 1,
            advertise: None,
            unix_ms: None,
        })
    };
    let replayed = vxmesh_proto::control::join_proof_message(identity.noise_public(), &[0; 32]);
    for proof in [identity.sign(&replayed).as_slice(), &[0; 64], b""] {
        let bytes = encode(&request(proof), REQUEST_LEN).unwrap();
        let Ok(Response::Error(refusal)) = converse(&config, &first, &bytes).await else {
            panic!("a join without proof was served");
        };
        assert_eq!(refusal.code, RefusalCode::Malformed);
        assert!(refusal.message.contains("proof"), "{}", refusal.message);
    }
    // None of them cost the token its use.
    Node::joined_through(&first, &token).await;
}

#[tokio::test]
async fn garbage_of_a_member_is_refused_and_the_connection_lives_on() {
    let (first, second) = pair().await;
    let config =
        lax_client(&second.credentials, Some(&second.credentials.membership.certificate), &first);
    let (_endpoint, connection) = dial(&config, &first).await;
    for bad in [b"".as_slice(), b"nonsense", b"{\"v\":9,\"op\":\"ping\"}"] {
        let answer = link::ask(&connection, first.id(), bad).await;
        assert!(matches!(answer, Err(ControlError::Refused(_))), "{answer:?}");
    }
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let sent = send.write_all(&vec![b' '; REQUEST_LEN + 1]).await;
    assert!(sent.is_ok() && send.finish().is_ok() || sent.is_err());
    let bytes = receive.read_to_end(1000).await.unwrap();
    assert!(matches!(decode(&bytes, 1000), Ok(Response::Error(_))));
    for bad in [b"".as_slice(), b"\x02nonsense", b"\x07what", &[1; GOSSIP_LEN + 2]] {
        let mut stream = connection.open_uni().await.unwrap();
        stream.write_all(bad).await.unwrap();
        stream.finish().unwrap();
    }
    let ping = encode(&Request::Ping, 100).unwrap();
    assert_eq!(link::ask(&connection, first.id(), &ping).await.unwrap(), Response::Pong);
    assert!(first.service.seen(|seen| seen.gossip.is_empty() && seen.pushes.is_empty()));
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let first = Node::first();
    let dir = tempfile::tempdir().unwrap();
    Credentials::init(dir.path(), unix_now()).unwrap();
    let config = ControlConfig {
        credentials: Arc::new(Credentials::load(dir.path()).unwrap().unwrap()),
        data_dir: dir.path().into(),
        store: Arc::clone(&first.store),
        bind: first.addr(),
        advertise: None,
        join_limits: JoinLimits::default(),
    };
    let error = Control::start(config, Arc::new(Recorder::default())).unwrap_err();
    assert!(error.to_string().contains(&first.addr().to_string()), "{error}");
}

#[tokio::test]
async fn a_dual_stack_socket_serves_both_versions() {
    let dir = tempfile::tempdir().unwrap();
    Credentials::init(dir.path(), unix_now()).unwrap();
    let first = Node::start(dir, JoinLimits::default(), "[::]:0".parse().unwrap());
    let port = first.addr().port();
    let token = first.token(None);
    let mut servers = HashMap::from([("v4", format!("127.0.0.1:{port}"))]);
    if first.addr().is_ipv6() {
        servers.insert("v6", format!("[::1]:{port}"));
    }
    for (version, server) in servers {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(&token, loopback(port));
        options.servers = vec![server];
        let credentials = join(dir.path(), &options).await.unwrap().credentials;
        let seen = first.service.seen(|seen| seen.newcomers.pop()).unwrap();
        assert_eq!(seen.addr.is_ipv4(), version == "v4", "{}", seen.addr);
        assert_eq!(credentials.membership.peers[0].addrs.len(), 1);
    }
}

/// The future of a join is spawned and boxed by its callers: it must be `Send`.
#[test]
fn joining_is_send() {
    fn is_send<F: Future + Send>(_: F) {}
    let token: Token = format!("VXMTKN-1-{}-{}", "a".repeat(52), "a".repeat(26)).parse().unwrap();
    let options = options(&token, loopback(1));
    is_send(join(Path::new("/nowhere"), &options));
}

#[tokio::test]
async fn a_removed_identity_is_told_so_and_served_nothing() {
    let (first, second) = pair().await;
    second.wants(&first);
    second.ping(first.id()).await.unwrap();
    let word = format!("{} was removed", second.id());
    let told = |times: usize| {
        let (second, word) = (&second, &word);
        async move {
            let heard = async {
                while second.service.seen(|seen| seen.words.iter().filter(|w| *w == word).count())
                    < times
                {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(PATIENCE, heard).await.unwrap();
        }
    };
    first.service.seen(|seen| seen.removed = Some(second.id()));
    // A request on a connection that is still up gets it no certificate.
    let renewed = second.control.renew().await.unwrap_err();
    assert!(renewed.to_string().contains("was removed from the mesh"), "{renewed}");
    first.control.expel(second.id(), &word);
    told(1).await;
    // It tries again and again; each connection ends with the word before anything is served.
    let before = first.service.seen(|seen| seen.connected.len());
    told(3).await;
    assert_eq!(first.service.seen(|seen| seen.connected.len()), before);
    let ping = second.control.request(first.id(), &Request::Ping, Duration::from_millis(200)).await;
    assert!(ping.is_err());
}
