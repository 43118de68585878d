//! The rules inside a network that lead out of it and in.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use vxmesh_proto::object;

use super::{gateway::Way, mesh::failed};
use crate::{
    api::ApiError,
    firewall::{
        flows,
        network::{self, Entrance, Interfaces, Questions},
    },
    gateway::uplink::{self, Uplink},
    netlink::overlay::{self, Overlay},
};

impl Way {
    /// Brings the rules inside a network in step, and says whether their counters begin anew.
    pub(super) fn keep_rules(
        &mut self,
        overlay: &Overlay,
        network: &object::Network,
        uplink: &Uplink,
        entrances: &[Entrance],
        (clients, servers): (&[IpAddr], &[IpAddr]),
    ) -> Result<bool, ApiError> {
        let subnets: Vec<IpNet> = network.subnets.iter().map(|subnet| subnet.cidr).collect();
        let interfaces = Interfaces {
            bridge: overlay::GATEWAY,
            node: overlay::NODE,
            uplink: uplink::INSIDE,
            uplink_ips: &uplink.ips(),
        };
        let gateways: Vec<IpAddr> = network.subnets.iter().map(|subnet| subnet.gateway).collect();
        let questions = Questions { clients, servers, gateways: &gateways };
        let wanted = network::table(interfaces, &subnets, network.isolated, entrances, questions);
        let wanted = Arc::new(wanted);
        let forget =
            || flows::forget(|flow| network::is_stale(flow, &subnets, entrances, questions));
        let kept = overlay.netns().run(|| Ok(self.rules.keep(wanted, forget, || Ok(()))));
        kept.map_err(|error| failed(error, "see the agent's log"))?
            .map_err(|error| failed(error, "does the kernel have nf_tables?"))
    }
}
