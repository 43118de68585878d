//! Whether packets pass between this node and the others, asked from both ends, and what keeps a
//! way open through a translation (NAT).
//!
//! ```text
//! doctor ── probe ──> peer : sends to this node's data port, knocks at its control port, waits for what this node sends
//! doctor              : sends to the peer's data port, knocks at its control port, waits for what the peer sends
//! ```
//!
//! What is sent to a data port is a keepalive or a handshake, so a firewall treats it as it treats
//! the frames.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{info, warn};
use vxmesh_proto::{
    addr::NodeId,
    control::{Request, Response},
    session::Probe,
};

use super::{cut::unconnected, doctor::check, mesh::Mesh};
use crate::{
    api::{Diagnosis, Health, Node},
    control::{Caller, Control, ControlError, join::is_own, knock::knock},
};

/// How long a packet may take that was asked for.
pub(super) const PASSES: Duration = Duration::from_millis(1500);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(10);
/// A second try, for a packet that was lost.
pub(super) const AGAIN: Duration = Duration::from_millis(500);
/// How long a peer may take to answer, which waits as long itself.
pub(super) const ANSWER: Duration = Duration::from_secs(4);
/// Translations forget a quiet flow of UDP after 30 s and more (RFC 4787 section 4.3 wants 2
/// minutes; many do not keep to it).
const KEEP_OPEN: Duration = Duration::from_secs(20);
/// Data that is not answered for this long, and then for as long as a peer may be silent
/// (`crate::host::reach`): a sound peer says something within ten seconds.
const ANSWERS: Duration = Duration::from_secs(5);
/// Nodes that a row names.
const NAMED: usize = 5;

/// What passes between this node and another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Passage {
    /// From there to here: to the data port, to the control port.
    data_in: bool,
    control_in: Option<bool>,
    /// From here to there.
    data_out: bool,
    control_out: Option<bool>,
    /// Where it sees this node's control packets come from.
    observed: Option<IpAddr>,
}

impl Mesh {
    /// A peer asks what passes.
    pub(super) async fn probed(&self, from: Caller, ports: bool) -> Response {
        let observed = from.addr;
        if !ports {
            return Response::Probed { data: None, control: None, observed };
        }
        let control = self.announced(from.node);
        let (data, control) = tokio::join!(self.hears(from.node), self.answers(control));
        Response::Probed { data: Some(data), control, observed }
    }

    /// Where a node says that its control port is.
    fn announced(&self, node: NodeId) -> Option<SocketAddr> {
        self.member.location.of(node)
    }

    async fn answers(&self, addr: Option<SocketAddr>) -> Option<bool> {
        match addr {
            Some(addr) => Some(knock(addr, PASSES).await),
            None => None,
        }
    }

    /// Sends to a node's data port, and waits for what that one sends to this.
    pub(super) async fn hears(&self, node: NodeId) -> bool {
        let Some(peer) = self.member.peers.get(node) else { return false };
        let start = Instant::now();
        let heard = || peer.last_heard().is_some_and(|at| at >= start);
        let waited = async {
            let mut again = Instant::now();
            while !heard() {
                if again <= Instant::now() {
                    self.host.plane.probe(node, Probe::Keepalive).await;
                    again = Instant::now() + AGAIN;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let heard = tokio::time::timeout(PASSES, waited).await.is_ok();
        // It may not have sent before this node had heard of it.
        self.host.plane.probe(node, Probe::Keepalive).await;
        heard
    }

    /// What passes between this node and one that is connected; nothing if its version cannot be
    /// asked.
    async fn passage(
        &self,
        control: &Control,
        node: NodeId,
    ) -> Result<Option<Passage>, ControlError> {
        let asked = control.request(node, &Request::Probe { ports: true }, ANSWER);
        let there = self.answers(self.announced(node));
        match tokio::join!(asked, self.hears(node), there) {
            (Ok(Response::Probed { data, control, observed }), data_in, control_out) => {
                Ok(Some(Passage {
                    data_in,
                    control_in: control,
                    data_out: data == Some(true),
                    control_out,
                    observed: Some(observed.ip().to_canonical()),
                }))
            }
            (Ok(_) | Err(ControlError::Refused(_)), ..) => Ok(None),
            (Err(error), ..) => Err(error),
        }
    }

    /// `doctor`: both ports, from this node to each other and back.
    pub(super) async fn passage_diagnoses(&self) -> Vec<Diagnosis> {
        let Some(control) = self.member.control.get() else { return Vec::new() };
        let connections = control.peers();
        let mut nodes = self.node_list();
        nodes.retain(|node| !node.is_self && !node.is_gone());
        let (connections, ports) =
            (&connections, [self.config.control_port, self.config.data_port]);
        let asked = nodes.iter().map(|node| async move {
            let connection = connections.iter().find(|peer| peer.node == node.id);
            match connection.filter(|peer| peer.connected) {
                Some(_) => (node, Ok(self.passage(control, node.id).await)),
                None => {
                    let heard = self.hears_unconnected(control, connections, node).await;
                    (node, Err(unconnected(node, connection, heard, ports)))
                }
            }
        });
        let mut all = Vec::new();
        let (mut well, mut old, mut seen) = (Vec::new(), Vec::new(), Vec::new());
        for (node, passage) in futures_util::future::join_all(asked).await {
            match passage {
                Err(unconnected) => all.push(unconnected),
                Ok(Err(error)) => all.push(unanswered(node, &error)),
                Ok(Ok(None)) => old.push(node.name.as_str()),
                Ok(Ok(Some(passage))) => {
                    seen.extend(passage.observed.map(|at| (node.name.as_str(), at)));
                    let found = blocked(node.name.as_str(), passage, ports);
                    if found.is_empty() {
                        well.push(node.name.as_str());
                    }
                    all.extend(found);
                }
            }
        }
        if !well.is_empty() {
            let found = format!("control ok, data ok, both ways: {}", some(&well));
            all.insert(0, check("peers", Health::Ok, found, ""));
        }
        if !old.is_empty() {
            let found = format!("cannot be asked whether packets pass: {}", some(&old));
            all.push(check("peers", Health::Warn, found, "upgrade the agents there"));
        }
        all.extend(self.translated(&seen));
        all
    }

    /// Nodes that see this one at an address that it neither has nor announces.
    fn translated(&self, seen: &[(&str, IpAddr)]) -> Option<Diagnosis> {
        let own = self.member.location.own();
        let (node, at) = seen.iter().find(|(_node, at)| !own.contains(at) && !is_own(*at))?;
        let hint = format!(
            "others reach it only while it keeps the way open, which it does; if UDP {} and {} of {at} lead here, say so with `--advertise {at}`",
            self.config.control_port, self.config.data_port
        );
        let found = format!(
            "{node} sees this node at {at}, which is no address of this host: it is behind a translation (NAT)"
        );
        Some(check("nat", Health::Warn, found, &hint))
    }

    /// Asks a node that was just met where it sees this one, and says so once if that is behind a
    /// translation.
    pub(super) async fn look_from(&self, node: NodeId) {
        let Some(control) = self.member.control.get() else { return };
        let asked = control.request(node, &Request::Probe { ports: false }, ANSWER).await;
        let Ok(Response::Probed { observed, .. }) = asked else { return };
        let at = observed.ip().to_canonical();
        if self.member.location.own().contains(&at) || is_own(at) {
            self.host.reach.forget_translation(node);
            return;
        }
        if self.host.reach.note_translation(node) {
            info!(
                %at, node = %self.node_name(node),
                "this node is behind a translation (NAT): it keeps the way to the others open; see `vxmesh doctor`"
            );
        }
    }

    /// Sends to those who see this node behind a translation, before that forgets the way.
    pub(super) fn keep_open(self: &Arc<Self>) {
        let is_quiet = |node: &NodeId| {
            let peer = self.member.peers.get(*node);
            peer.is_some_and(|peer| peer.last_sent().is_none_or(|at| at.elapsed() >= KEEP_OPEN))
        };
        let mut quiet = self.host.reach.translated();
        quiet.retain(is_quiet);
        if quiet.is_empty() {
            return;
        }
        let mesh = Arc::clone(self);
        tokio::spawn(async move {
            for node in quiet {
                mesh.host.plane.probe(node, Probe::Keepalive).await;
            }
        });
    }

    /// Says which peers answer on the control port and not on the data port.
    pub(super) fn tell_silent(self: &Arc<Self>) {
        let Some(control) = self.member.control.get() else { return };
        let now = Instant::now();
        for connection in control.peers().into_iter().filter(|peer| peer.connected) {
            let Some(peer) = self.member.peers.get(connection.node) else { continue };
            let node = connection.node;
            let unanswered = peer.unanswered_since().is_some_and(|since| now - since > ANSWERS);
            let waits = peer.is_shaking() || unanswered;
            let due = self.host.reach.look(node, waits, connection.since.unwrap_or(now), now);
            match due {
                Some(true) => {
                    let mesh = Arc::clone(self);
                    tokio::spawn(async move { mesh.tell_silent_one(node).await });
                }
                Some(false) => info!(node = %self.node_name(node), "the data port answers"),
                None => {}
            }
        }
    }

    async fn tell_silent_one(&self, node: NodeId) {
        let Some(control) = self.member.control.get() else { return };
        // Dead hosts are silent, too.
        if control.request(node, &Request::Ping, PASSES).await.is_ok() {
            let (name, port) = (self.node_name(node), self.config.data_port);
            warn!(
                node = %name, id = %node.short(), port,
                "the node answers on the control port, but nothing on the data port: is UDP blocked? `vxmesh doctor` tells where"
            );
        } else {
            self.host.reach.forget_silence(node);
        }
    }
}

fn some(names: &[&str]) -> String {
    let shown: Vec<&str> = names.iter().take(NAMED).copied().collect();
    match names.len().saturating_sub(NAMED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// It is connected, and dead or cut off since a moment.
fn unanswered(node: &Node, error: &ControlError) -> Diagnosis {
    let found = format!("{} does not answer: {error}", node.name);
    check(
        "peers",
        Health::Warn,
        found,
        "see whether its agent runs, and `vxmesh node ls` in half a minute",
    )
}

/// What does not pass, with the command that opens it.
fn blocked(node: &str, passage: Passage, [control, data]: [u16; 2]) -> Vec<Diagnosis> {
    let opens = |port: u16| {
        format!(
            "`ufw allow {port}/udp`, `firewall-cmd --permanent --add-port={port}/udp` or a rule of yours opens it; look at firewalls in between, too"
        )
    };
    let row = |health, found: String, port: u16, host: &str| {
        check("peers", health, found, &format!("on {host}: {}", opens(port)))
    };
    let mut rows = Vec::new();
    match (passage.data_in, passage.data_out) {
        (true, true) => {}
        (false, false) => rows.push(row(
            Health::Fail,
            format!("{node}: data blocked, no packet passes to UDP {data} in either direction"),
            data,
            &format!("{node} and this host"),
        )),
        (false, true) => rows.push(row(
            Health::Fail,
            format!("{node}: data blocked, what it sends to UDP {data} of this host does not come"),
            data,
            "this host",
        )),
        (true, false) => rows.push(row(
            Health::Fail,
            format!(
                "{node}: data blocked, what this host sends to its UDP {data} does not come there"
            ),
            data,
            node,
        )),
    }
    if passage.control_in == Some(false) {
        rows.push(row(
            Health::Warn,
            format!("{node}: control of this host blocked, it cannot begin to speak to UDP {control} here"),
            control,
            "this host",
        ));
    }
    if passage.control_out == Some(false) {
        rows.push(row(
            Health::Warn,
            format!(
                "{node}: control blocked, this host cannot begin to speak to UDP {control} there"
            ),
            control,
            node,
        ));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_blocked_is_named_with_its_side() {
        let well = Passage {
            data_in: true,
            control_in: Some(true),
            data_out: true,
            control_out: Some(true),
            observed: None,
        };
        let say = |passage| {
            let rows = blocked("h2", passage, [7760, 7761]);
            rows.iter()
                .map(|row| format!("{} {} {}", row.health, row.found, row.hint))
                .collect::<Vec<_>>()
        };
        assert!(say(well).is_empty());
        for (passage, health, host, port) in [
            (Passage { data_in: false, ..well }, "fail", "on this host:", "7761/udp"),
            (Passage { data_out: false, ..well }, "fail", "on h2:", "7761/udp"),
            (
                Passage { data_in: false, data_out: false, ..well },
                "fail",
                "on h2 and this host:",
                "7761/udp",
            ),
            (Passage { control_in: Some(false), ..well }, "warn", "on this host:", "7760/udp"),
            (Passage { control_out: Some(false), ..well }, "warn", "on h2:", "7760/udp"),
        ] {
            let said = say(passage);
            assert_eq!(said.len(), 1, "{said:?}");
            for words in [health, host, port, "blocked"] {
                assert!(said[0].contains(words), "{words}: {said:?}");
            }
        }
        assert!(say(Passage { control_in: None, control_out: None, ..well }).is_empty());
    }
}
