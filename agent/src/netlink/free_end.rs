//! Cables whose inner end stays on the host until somebody else moves it: a container engine, into
//! a namespace that is not there yet when it asks.

use vxmesh_proto::addr::EndpointId;

use super::{
    netns::Netns,
    overlay::{Overlay, OverlayError, Plug, port_name},
};

impl Overlay {
    /// Lays a cable whose inner end is the caller's to move. One that is there already is kept,
    /// wherever it leads.
    pub(super) async fn attach_free(&self, plug: &Plug) -> Result<String, OverlayError> {
        let (host, outer) = (Netns::current()?, port_name(plug.id));
        let ifname = plug.ifname.clone().unwrap_or_else(|| free_name(plug.id));
        if self.links.get(&outer).await?.is_none() {
            let end = (ifname.as_str(), plug.mac);
            match self.links.create_veth(&outer, end, &host, self.spec.mtu).await {
                Err(error) if error.exists() => return Err(OverlayError::Taken(ifname)),
                made => made?,
            }
        }
        self.links.set_alias(&outer, &plug.id.to_string()).await?;
        self.set_endpoint_port(&outer, plug.mac).await?;
        Ok(ifname)
    }
}

/// The inner end of a cable that somebody else moves: 14 characters of the 15 that a name may have.
fn free_name(endpoint: EndpointId) -> String {
    let short = endpoint.short();
    format!("vx{}", short.get(..12).unwrap_or(&short))
}
