//! Watches what the flows of this node see of backends, and asks about those that are suspect.
//!
//! ```text
//! every 25 ms while there are flows : look -> questions -> answers -> another snapshot of services
//! a question about a node           : a sealed packet that it answers at once, then a handshake
//! a question about a port           : its node tries to connect (CheckBackend)
//! ```

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch::Receiver, task::JoinSet, time::sleep};
use tracing::{debug, info};
use vxmesh_proto::{
    addr::{EndpointId, NetworkId, NodeId},
    control::{Request, Response},
    lb::{
        BackendPort, Flows, Protocol,
        ejection::{ANSWER, Answer, Ejection, PeerSight, Subject},
    },
    session::Probe,
    tables::RowKey,
    wire::{TCP, UDP},
};

use super::{FLOWS, Services, backends::global_ips, lock, reach};
use crate::daemon::Mesh;

/// How often what was seen is looked at while there are flows, and without.
const LOOK: Duration = Duration::from_millis(25);
const IDLE: Duration = Duration::from_millis(250);
/// How often a node that is asked is looked at.
const HEARD: Duration = Duration::from_millis(5);
/// How long a backend may take to accept, within the time that an answer may take.
const ACCEPTS: Duration = Duration::from_millis(100);

/// Watches until the agent stops.
pub(crate) async fn watch(mesh: Arc<Mesh>, mut stop: Receiver<bool>) {
    // Those that are under way end with this.
    let mut questions = JoinSet::new();
    loop {
        // Also for a while after the last one ended: what is refused ends at once.
        let is_used = |flows: &Arc<Flows>| {
            let count = flows.count();
            count.open + count.closed > 0
        };
        let has_flows = lock(&FLOWS).as_ref().is_some_and(is_used);
        tokio::select! {
            () = sleep(if has_flows { LOOK } else { IDLE }) => {}
            _ = stop.changed() => return,
        }
        if has_flows {
            for subject in look(&mesh) {
                let mesh = Arc::clone(&mesh);
                questions.spawn(async move {
                    let begun = Instant::now();
                    let answer = ask(&mesh, subject).await;
                    debug!(?subject, ?answer, took = ?begun.elapsed(), "asked about a backend");
                    take_answer(&mesh, subject, answer);
                });
            }
            tell(&mesh);
        }
        while questions.try_join_next().is_some() {}
    }
}

fn look(mesh: &Mesh) -> Vec<Subject> {
    let tables = mesh.tables_with_services();
    let services: Vec<_> =
        tables.iter().filter_map(|table| Some((table.spec().id, table.services()?))).collect();
    lock(&mesh.services.ejections).look(Instant::now(), &services, |node| sight(mesh, node))
}

fn sight(mesh: &Mesh, node: NodeId) -> PeerSight {
    if node == mesh.member.me {
        return PeerSight::HERE;
    }
    let Some(peer) = mesh.member.peers.get(node) else { return PeerSight::default() };
    // A handshake whose last packet was lost measured nothing.
    let of_control = || mesh.member.control.get()?.round_trip(node);
    PeerSight {
        unanswered: peer.unanswered_since(),
        heard: peer.last_heard(),
        round_trip: peer.rtt().or_else(of_control),
    }
}

fn take_answer(mesh: &Mesh, subject: Subject, answer: Answer) {
    lock(&mesh.services.ejections).handle_answer(Instant::now(), subject, answer);
    tell(mesh);
}

/// Has the data path and the log know what changed.
fn tell(mesh: &Mesh) {
    while let Some(event) = {
        let mut ejections = lock(&mesh.services.ejections);
        ejections.poll_event()
    } {
        let (subject, is_out) = match event {
            Ejection::Out(subject) => (subject, true),
            Ejection::Back(subject) => (subject, false),
        };
        match subject {
            Subject::Node(node) if is_out => {
                let name = mesh.node_name(node);
                info!(node = %name, id = %node.short(), "the node answers nothing: services send no new connections there");
            }
            Subject::Node(node) => {
                let name = mesh.node_name(node);
                info!(node = %name, id = %node.short(), "the node answers: services send connections there again");
            }
            Subject::Port(_, BackendPort { key, port, .. }) if is_out => info!(
                endpoint = %key.endpoint.short(), node = %mesh.node_name(key.node), port,
                "the backend accepts nothing: services send it no new connections"
            ),
            Subject::Port(_, BackendPort { key, port, .. }) => info!(
                endpoint = %key.endpoint.short(), node = %mesh.node_name(key.node), port,
                "the backend accepts connections: services send it some again"
            ),
        }
        mesh.member.keeper.kick();
    }
}

async fn ask(mesh: &Arc<Mesh>, subject: Subject) -> Answer {
    match subject {
        Subject::Node(node) => ask_node(mesh, node).await,
        Subject::Port(network, of) if of.key.node == mesh.member.me => {
            let port = (of.protocol, of.port);
            of_accepts(mesh.services.check(mesh, network, of.key.endpoint, port).await)
        }
        Subject::Port(network, of) => ask_port(mesh, network, of).await,
    }
}

/// Whether anything sealed comes from a node that is asked for it.
async fn ask_node(mesh: &Arc<Mesh>, node: NodeId) -> Answer {
    if node == mesh.member.me {
        return Answer::Well;
    }
    let Some(peer) = mesh.member.peers.get(node) else { return Answer::Unknown };
    let start = Instant::now();
    let is_heard = || peer.last_heard().is_some_and(|at| at >= start);
    let patience = sight(mesh, node).patience(ANSWER / 2);
    // An older version answers the second only.
    for probe in [Probe::Echo, Probe::Handshake] {
        mesh.host.plane.probe(node, probe).await;
        let asked = Instant::now();
        while asked.elapsed() < patience {
            if is_heard() {
                return Answer::Well;
            }
            sleep(HEARD).await;
        }
    }
    if is_heard() { Answer::Well } else { Answer::Fails }
}

/// Whether a port's own node can connect to it.
async fn ask_port(mesh: &Arc<Mesh>, network: NetworkId, of: BackendPort) -> Answer {
    let Some(control) = mesh.member.control.get() else { return Answer::Unknown };
    let protocol = match of.protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    };
    let BackendPort { key: RowKey { node, endpoint }, port, .. } = of;
    let request = Request::CheckBackend { network, endpoint, protocol, port };
    match control.request(node, &request, sight(mesh, node).answers_within()).await {
        Ok(Response::BackendChecked { accepts }) => of_accepts(accepts),
        Ok(_) | Err(_) => Answer::Unknown,
    }
}

const fn of_accepts(accepts: Option<bool>) -> Answer {
    match accepts {
        Some(true) => Answer::Well,
        Some(false) => Answer::Fails,
        None => Answer::Unknown,
    }
}

impl Services {
    /// Whether a port of a local backend accepts, for another node that asks; nothing if it is no
    /// port of a service, or if that cannot be told.
    pub(crate) async fn check(
        &self,
        mesh: &Mesh,
        network: NetworkId,
        endpoint: EndpointId,
        (protocol, port): (Protocol, u16),
    ) -> Option<bool> {
        let _one = self.answers.try_acquire().ok()?;
        let tables = mesh.tables_with_services();
        let table = tables.iter().find(|table| table.spec().id == network)?;
        let key = RowKey { node: mesh.member.me, endpoint };
        let of = BackendPort { key, protocol, port };
        if !table.services()?.iter().any(|service| service.has(&of)) {
            return None;
        }
        let netns = mesh.netns_of(network);
        // One that listens on one IP version only is there.
        let asked = global_ips(&table.row(&key)?.ips)
            .map(|ip| reach::accepts(&netns, (protocol, SocketAddr::new(ip, port)), ACCEPTS));
        let said = futures_util::future::join_all(asked).await;
        match said.iter().find(|it| **it == Some(true)) {
            Some(well) => *well,
            None => said.into_iter().collect::<Option<Vec<bool>>>().map(|_all| false),
        }
    }
}
