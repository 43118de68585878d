//! In which direction the way to a node is cut with which there is no control connection. It cannot
//! be asked itself: another node that both reach passes the question on.
//!
//! ```text
//! doctor ── hears {from: this, to: that} ──> other ── the same ──> that node : waits for what comes from this one
//! doctor : sends to that node's data port meanwhile, and waits for what comes from it
//! ```

use std::time::Duration;

use tokio::time::timeout;
use vxmesh_proto::{
    addr::NodeId,
    control::{Refusal, RefusalCode, Request, Response},
    session::Probe,
};

use super::{
    doctor::check,
    mesh::Mesh,
    probe::{AGAIN, ANSWER, PASSES},
    sync::refusal,
};
use crate::{
    api::{Diagnosis, Health, Node},
    control::{Control, PeerState as Connection},
};

/// How long the other node waits for the answer that it passes back.
const PASSED_ON: Duration = PASSES.saturating_add(Duration::from_secs(1));

/// Whether packets come through between this node and another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// What the other sends comes here.
    here: bool,
    /// What this node sends comes there, if somebody could ask.
    there: Option<bool>,
}

impl Mesh {
    /// A member asks whether the node `to` hears the node `from`.
    pub(super) async fn heard(
        &self,
        caller: NodeId,
        from: NodeId,
        to: NodeId,
    ) -> Result<Response, Refusal> {
        if to == self.member.me {
            return Ok(Response::Heard { heard: self.hears(from).await });
        }
        // Who passes it on a second time would do so for ever.
        if from != caller {
            return Err(refusal(RefusalCode::Unsupported, "a node asks about itself only"));
        }
        let control = self.member.control.get();
        let control = control.filter(|it| is_connected(&it.peers(), to));
        let Some(control) = control else {
            return Err(refusal(RefusalCode::NotFound, "this node does not reach it either"));
        };
        let asked = control.request(to, &Request::Hears { from, to }, PASSED_ON).await;
        asked.map_err(|error| refusal(RefusalCode::Failed, error.to_string()))
    }

    /// What comes through between this node and one that is not connected. Of who is dead to all
    /// that is known already.
    pub(super) async fn hears_unconnected(
        &self,
        control: &Control,
        connections: &[Connection],
        node: &Node,
    ) -> Heard {
        let others: Vec<NodeId> =
            connections.iter().filter(|it| it.connected).map(|it| it.node).collect();
        if node.state == "dead" && !others.is_empty() {
            return Heard::default();
        }
        let request = Request::Hears { from: self.member.me, to: node.id };
        let ask = async {
            for other in others {
                if let Ok(Response::Heard { heard }) =
                    control.request(other, &request, ANSWER).await
                {
                    return Some(heard);
                }
            }
            None
        };
        let there = async {
            tokio::select! {
                asked = timeout(ANSWER, ask) => asked.ok().flatten(),
                () = self.send_on(node.id) => None,
            }
        };
        let (here, there) = tokio::join!(self.hears(node.id), there);
        Heard { here, there }
    }

    /// Sends to a node's data port again and again.
    async fn send_on(&self, node: NodeId) {
        loop {
            self.host.plane.probe(node, Probe::Keepalive).await;
            tokio::time::sleep(AGAIN).await;
        }
    }
}

fn is_connected(connections: &[Connection], node: NodeId) -> bool {
    connections.iter().any(|it| it.node == node && it.connected)
}

/// A node without a control connection.
pub(super) fn unconnected(
    node: &Node,
    connection: Option<&Connection>,
    heard: Heard,
    [control, data]: [u16; 2],
) -> Diagnosis {
    let name = node.name.as_str();
    let why = connection.and_then(|peer| peer.last_error.clone());
    let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
    let unconnected = format!("no control connection with {name}, which is {}{why}", node.state);
    let ports = format!("UDP {control} and {data}");
    let open = |host: &str| {
        format!(
            "on {host}: `ufw allow {control}/udp && ufw allow {data}/udp`, or a rule of yours, opens both; look at firewalls and routes in between, too"
        )
    };
    let (health, found, hint) = match (heard.here, heard.there) {
        (true, Some(true)) => (
            Health::Warn,
            format!("{unconnected}; UDP {data} passes both ways"),
            format!("see whether UDP {control} passes, on both hosts"),
        ),
        (true, Some(false)) => (
            Health::Fail,
            format!(
                "cut in one direction: {name} does not hear this node ({ports}); this node hears {name}"
            ),
            open(name),
        ),
        (false, Some(true)) => (
            Health::Fail,
            format!(
                "cut in one direction: this node does not hear {name} ({ports}); {name} hears this node"
            ),
            open("this host"),
        ),
        (false, Some(false)) => (
            Health::Fail,
            format!(
                "cut in both directions: {name} and this node do not hear each other ({ports}), another node hears both"
            ),
            open(&format!("{name} and this host")),
        ),
        (true, None) => (
            Health::Warn,
            format!(
                "{unconnected}; this node hears it, so it seems that {name} does not hear this node ({ports})"
            ),
            format!("run `vxmesh doctor` there, too; {}", open(name)),
        ),
        (false, None) => (
            Health::Warn,
            unconnected,
            format!(
                "see whether its agent runs, and whether UDP {control} passes; a node that is gone for good goes with `vxmesh node rm`"
            ),
        ),
    };
    check("peers", health, found, &hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_direction_is_said_with_the_side_to_look_at() {
        let node = Node {
            id: NodeId::of_public_key(b"h2"),
            name: "h2".parse().unwrap(),
            vtep: None,
            state: "alive".to_owned(),
            is_self: false,
            issuer: false,
            drained: false,
            zone: None,
        };
        for (here, there, health, found, hint) in [
            (true, Some(false), Health::Fail, "h2 does not hear this node (UDP 7760", "on h2: "),
            (
                false,
                Some(true),
                Health::Fail,
                "this node does not hear h2 (UDP 7760",
                "on this host: ",
            ),
            (false, Some(false), Health::Fail, "do not hear each other", "on h2 and this host: "),
            (true, Some(true), Health::Warn, "UDP 7761 passes both ways", "on both hosts"),
            (true, None, Health::Warn, "this node hears it", "`vxmesh doctor` there"),
            (false, None, Health::Warn, "with h2, which is alive", "`vxmesh node rm`"),
        ] {
            let said = unconnected(&node, None, Heard { here, there }, [7760, 7761]);
            assert_eq!(said.health, health, "{said:?}");
            assert!(said.found.contains(found), "{said:?}");
            assert!(said.hint.contains(hint), "{said:?}");
            assert_eq!(
                said.found.starts_with("cut in one direction"),
                here != there.unwrap_or(here)
            );
        }
    }
}
