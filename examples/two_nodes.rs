//! A mesh of two nodes in one process, over the library: identities, a join with a token, control
//! over QUIC on the loopback, gossip, and a signed record that one node pushes and the other
//! checks. Needs no root.
//!
//! ```text
//! cargo run -p vxmesh-examples --example two_nodes
//! ```
//!
//! [`Node`] is what an embedder writes: it answers what control and gossip ask, from what it knows
//! of the other members.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use async_trait::async_trait;
use bytes::Bytes;
use ring::signature::Ed25519KeyPair;
use vxmesh::{
    control::{
        Caller, Control, ControlConfig, JoinLimits, Newcomer, Service,
        join::{JoinOptions, join},
    },
    identity::{Credentials, Member, token, unix_now},
    store::Store,
};
use vxmesh_gossip::{
    membership::{Config as GossipConfig, Gossip, World},
    transport::Pipe,
};
use vxmesh_proto::{
    addr::{EndpointId, MacAddr, NetworkId, NodeId},
    control::{MemberInfo, Push, RefusalCode, Request, Response},
    object::KeyRing,
    record::{Claim, EndpointClaim, Key, NodeClaim},
};

/// What one node knows of the others, and its two halves.
#[derive(Default)]
struct Node {
    /// Who is a member, with the keys from their certificates.
    keys: Mutex<BTreeMap<NodeId, [u8; 32]>>,
    control: OnceLock<Control>,
    gossip: OnceLock<Gossip>,
}

impl Node {
    fn keys(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, [u8; 32]>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a node from the credentials in its directory.
    async fn start(name: &str, data_dir: &Path, store: Arc<Store>) -> Result<Arc<Self>> {
        let credentials = Credentials::load(data_dir)?.context("this node belongs to a mesh")?;
        let mesh = credentials.membership.mesh_id;
        let pair = Ed25519KeyPair::from_pkcs8(credentials.identity.pkcs8())
            .map_err(|error| anyhow!("the identity's key: {error}"))?;
        let node = Arc::new(Self::default());
        let config = ControlConfig {
            credentials: Arc::new(credentials),
            data_dir: data_dir.to_owned(),
            store: Arc::clone(&store),
            bind: (Ipv4Addr::LOCALHOST, 0).into(),
            advertise: None,
            join_limits: JoinLimits::default(),
        };
        let control = Control::start(config, Arc::clone(&node) as _)?;
        let about = NodeClaim {
            name: name.parse()?,
            control: vec![control.local_addr()],
            vteps: Vec::new(),
            aes: false,
            drained: None,
            zone: None,
            unpublished: Default::default(),
        };
        node.control.set(control).map_err(|_second| anyhow!("control starts once"))?;
        let config = GossipConfig {
            mesh,
            pair: Arc::new(pair),
            incarnation: store.next_incarnation(unix_now() * 1000)?,
            interval: Duration::from_millis(100),
            seeds: Vec::new(),
            claims: vec![Claim::Node(about)],
        };
        let gossip = Gossip::start(config, Arc::clone(&node) as _, Arc::clone(&node) as _).await?;
        node.gossip.set(gossip).map_err(|_second| anyhow!("gossip starts once"))?;
        Ok(node)
    }

    fn control(&self) -> Result<&Control> {
        self.control.get().context("control runs")
    }

    fn gossip(&self) -> Result<&Gossip> {
        self.gossip.get().context("gossip runs")
    }
}

impl KeyRing for Node {
    fn public_key(&self, node: NodeId) -> Option<[u8; 32]> {
        self.keys().get(&node).copied()
    }
}

impl World for Node {
    fn members(&self) -> Vec<NodeId> {
        self.keys().keys().copied().collect()
    }

    fn heard_recently(&self, _node: NodeId) -> bool {
        // There is no data path here.
        false
    }
}

impl Pipe for Node {
    fn send(&self, to: NodeId, bytes: Bytes) {
        if let Some(control) = self.control.get() {
            // Gossip is made for loss.
            let _queued = control.send_gossip(to, bytes);
        }
    }
}

#[async_trait]
impl Service for Node {
    async fn handle(&self, _from: Caller, request: Request) -> Response {
        match request {
            Request::Ping => Response::Pong,
            _ => Response::refuse(RefusalCode::Unsupported, "the example answers pings"),
        }
    }

    fn handle_gossip(&self, from: Caller, bytes: Bytes) {
        if let Some(gossip) = self.gossip.get() {
            gossip.handle_bytes(from.node, &bytes);
        }
    }

    fn handle_push(&self, from: Caller, push: Push) {
        if let Some(gossip) = self.gossip.get() {
            gossip.handle_push(from.node, &push.records);
        }
    }

    fn members(&self) -> Vec<MemberInfo> {
        Vec::new()
    }

    fn handle_newcomer(&self, newcomer: Newcomer) {
        self.keys().insert(newcomer.member.node_id, newcomer.member.ed25519_public);
    }

    fn handle_connected(&self, member: &Member, _certificate: &[u8], _addr: SocketAddr) {
        // The handshake has checked the certificate against the mesh's CA.
        self.keys().insert(member.node_id, member.ed25519_public);
        if let Some(gossip) = self.gossip.get() {
            gossip.call(member.node_id);
        }
    }

    fn handle_disconnected(&self, _node: NodeId) {}

    fn handle_renewed(&self, _certificate: &[u8]) {}
}

#[expect(clippy::print_stdout, reason = "an example talks to who runs it")]
fn say(line: &str) {
    println!("{line}");
}

/// Waits until `look` sees something.
async fn until<T>(what: &str, look: impl Fn() -> Option<T>) -> Result<T> {
    let looking = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), looking)
        .await
        .with_context(|| format!("{what} within twenty seconds"))
}

/// Makes the mesh, joins it, and passes one record.
async fn meet(dirs: [PathBuf; 2]) -> Result<()> {
    let [alice_dir, bob_dir] = dirs;
    let credentials = Credentials::init(&alice_dir, unix_now())?;
    let store = Arc::new(Store::open(&alice_dir.join("state.redb"))?);
    let (token, _stored) =
        token::create(&store, &credentials.membership.ca, unix_now(), 60, Some(1))?;
    say(&format!("alice made the mesh {}", credentials.membership.mesh_id));
    let alice = Node::start("alice", &alice_dir, store).await?;
    let server = alice.control()?.local_addr();

    let options = JoinOptions {
        token,
        servers: vec![server.to_string()],
        name: "bob".parse()?,
        control_port: 7760,
        advertise: None,
    };
    let alice_id = alice.gossip()?.me();
    let joined = join(&bob_dir, &options).await?;
    say(&format!("bob joined it as {}", joined.credentials.identity.node_id()));
    let bob_store = Arc::new(Store::open(&bob_dir.join("state.redb"))?);
    let bob = Node::start("bob", &bob_dir, bob_store).await?;
    bob.control()?.set_peers([(alice_id, server)]);
    let bob_id = bob.gossip()?.me();
    let named = |node: &Arc<Node>, other: NodeId| {
        node.gossip().ok()?.with_directory(|directory| {
            match directory.get(other, Key::Node)?.record.claim() {
                Claim::Node(claim) => Some(claim.name.clone()),
                Claim::Endpoint(_) | Claim::Gone => None,
            }
        })
    };
    let name = until("alice's claim by gossip", || named(&bob, alice_id)).await?;
    say(&format!("bob knows {name} by gossip"));
    let name = until("bob's claim by gossip", || named(&alice, bob_id)).await?;
    say(&format!("alice knows {name} by gossip"));

    let claim = EndpointClaim {
        id: EndpointId::from_random([1; 16]),
        network: NetworkId::from_random([2; 16]),
        name: "web".parse()?,
        aliases: Vec::new(),
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        ips: vec![[10, 0, 0, 5].into()],
        incarnation: 1,
        labels: BTreeMap::new(),
        router: false,
        health: BTreeMap::new(),
    };
    let key = Key::Endpoint(claim.id);
    let record = alice.gossip()?.publish(&Claim::Endpoint(claim))?;
    let row = (record.owner, record.key.to_string(), record.text.to_string());
    alice.control()?.push(bob_id, &Push { records: vec![row], objects: Vec::new() })?;
    let learned = until("the record", || {
        bob.gossip().ok()?.with_directory(|directory| directory.get(alice_id, key).cloned())
    })
    .await?;
    if let Claim::Endpoint(endpoint) = learned.record.claim() {
        say(&format!(
            "bob learned by {}: {} has {:?}",
            learned.source.as_str(),
            endpoint.name,
            endpoint.ips
        ));
    }
    bob.control()?.stop().await;
    alice.control()?.stop().await;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let parent = std::env::temp_dir().join(format!("vxmesh-two-nodes-{}", std::process::id()));
    let dirs = [parent.join("alice"), parent.join("bob")];
    for dir in &dirs {
        std::fs::create_dir_all(dir)?;
    }
    let met = meet(dirs).await;
    std::fs::remove_dir_all(&parent)?;
    met
}
