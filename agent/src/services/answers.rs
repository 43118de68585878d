//! Answers to clients from outside that are lost: those of backends whose default route is another
//! network's, where nobody knows the connection. Only a backend's own node knows its routes.

use std::net::IpAddr;

use vxmesh_proto::{addr::Name, lb, object, record::EndpointClaim};

use super::backends::backends;
use crate::daemon::Mesh;

/// What to do.
pub(crate) const HINT: &str =
    "publish a service of that network, or connect it here with a greater gw-priority";

/// The backends of this node that lose them, and why.
pub(super) fn lost(
    mesh: &Mesh,
    service: &object::Service,
    backends: &[(lb::Backend, &EndpointClaim)],
) -> Vec<String> {
    if service.published.is_empty() {
        return Vec::new();
    }
    let elsewhere = mesh.routed_elsewhere();
    let here = backends.iter().filter(|(backend, _)| backend.key.node == mesh.member.me);
    let lost = |(backend, claim): &(lb::Backend, &EndpointClaim)| {
        let versions = service.vips.iter().map(IpAddr::is_ipv4);
        let mut by = versions.filter_map(|is_ipv4| elsewhere.get(&(backend.key.endpoint, is_ipv4)));
        let (name, by) = (&claim.name, by.next()?);
        let what = format!("backend `{name}` loses its answers to clients from outside");
        Some(format!("{what}: it sends them by network `{by}`, which has its default route"))
    };
    here.filter_map(lost).collect()
}

/// The services with such backends, and why.
pub(crate) fn all_lost(mesh: &Mesh) -> Vec<(Name, String)> {
    let all = mesh.member.objects.read(|set| {
        let networks = set.active_networks().into_iter();
        let services = networks.flat_map(|network| set.services(network));
        let published = services.filter(|of| !of.service.published.is_empty());
        published.map(|of| of.service.clone()).collect::<Vec<object::Service>>()
    });
    let lost = |service: object::Service| {
        let claims = mesh.member.claims_of(service.network);
        let lost = lost(mesh, &service, &backends(&service, &claims)).into_iter();
        lost.map(|why| (service.name.clone(), why)).collect::<Vec<_>>()
    };
    all.into_iter().flat_map(lost).collect()
}
