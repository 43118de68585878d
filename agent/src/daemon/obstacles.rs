//! What `vxmesh doctor` says about rules of others that keep networks or agents from speaking.

use std::net::IpAddr;

use super::{doctor::check, mesh::Mesh};
use crate::{
    api::{Diagnosis, Health},
    firewall::{
        incoming,
        obstacles::{Obstacle, obstacles},
        table::Hook,
    },
    gateway::uplink,
};

impl Mesh {
    /// Whether other firewalls of the host let out what agents send.
    pub(super) fn outgoing(&self) -> Vec<Diagnosis> {
        let ports = [self.config.control_port, self.config.data_port];
        let closed = match incoming::closed(Hook::Output, &ports) {
            Ok(closed) => closed,
            Err(error) => {
                return vec![check("outgoing", Health::Warn, error.to_string(), "load nf_tables")];
            }
        };
        let row = |incoming::Closed { chain, ports, remedy }| {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            let found = format!("{chain} lets no UDP to {} out", ports.join(", "));
            let hint = format!("this node cannot speak to others: {remedy}");
            check("outgoing", Health::Fail, found, &hint)
        };
        closed.into_iter().map(row).collect()
    }
}

/// What an address means that the host does not have now.
pub(super) fn not_here(ip: &IpAddr) -> Diagnosis {
    let found = format!("ports are published on {ip}, which is no address of this host now");
    check(
        "published",
        Health::Warn,
        found,
        "connections to it go where the address is; they come here again when it is back",
    )
}

/// What keeps packets of networks from passing this host.
pub(super) fn in_the_way() -> Vec<Diagnosis> {
    let found = match obstacles(uplink::PREFIX) {
        Ok(found) => found,
        Err(error) => {
            return vec![check("passing", Health::Warn, error.to_string(), "load nf_tables")];
        }
    };
    let names = uplink::ALL;
    found.into_iter().map(|obstacle| match obstacle {
        Obstacle::Untracked(chain) => check(
            "passing",
            Health::Warn,
            format!("{chain} has rules that keep packets from being tracked (`notrack`)"),
            &format!(
                "what they match cannot leave a network or come to a published port: except `{names}`, \
                 and what is meant for published ports"
            ),
        ),
        Obstacle::Closed(chain) => check(
            "passing",
            Health::Fail,
            format!("{chain} drops what none of its rules accepts"),
            &format!(
                "nothing leaves a network or comes to a published port unless it is accepted there: \
                 nft insert rule {chain} iifname '\"{names}\"' accept, and what is meant for published ports"
            ),
        ),
        Obstacle::Named(chain) => check(
            "passing",
            Health::Warn,
            format!("{chain} drops packets by the name of networks' interfaces"),
            "it is obeyed; if that is not meant, remove the rule",
        ),
        Obstacle::Drops(chain, packets) => check(
            "passing",
            Health::Ok,
            format!("{chain} has rules that drop; they dropped {packets} packets up to now"),
            "",
        ),
    }).collect()
}
