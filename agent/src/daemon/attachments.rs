//! Endpoints of container runtimes that call the plug-in of the Container Network Interface: each
//! has the runtime's key in its row, and nothing else is written down.
//!
//! ```text
//! add    : the same answer if it is there; else what is left of it goes, and an endpoint is attached
//! remove : detached; none is fine
//! ```
//!
//! An endpoint whose namespace goes ends as any other does: some runtimes never say so.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Instant};

use ipnet::IpNet;
use tracing::{debug, info, warn};
use vxmesh_proto::addr::{Name, NetworkId};

use super::{
    attach::Whose,
    endpoints::gone,
    mesh::{Mesh, conflict},
};
use crate::{
    api::{
        ApiError, AttachSpec, Attachment, AttachmentKey, AttachmentSpec, Endpoint, ErrorCode,
        Network,
    },
    docker::name_on,
    host::endpoints::Stored,
    lock::lock,
};

fn under_way() -> ApiError {
    conflict("the container is just being attached".to_owned(), "try again in a moment")
}

impl Mesh {
    /// Puts a container into a network.
    pub(super) async fn add_attachment(
        self: &Arc<Self>,
        spec: AttachmentSpec,
    ) -> Result<Attachment, ApiError> {
        let network = self.network_for_containers(&spec.network)?;
        self.end_if_vanished(|endpoint| endpoint.attachment.as_ref() == Some(&spec.key)).await;
        if let Some(stored) = self.stored_attachment(&spec.key)? {
            let is_same = stored.network == network.id && *stored.netns() == *spec.netns;
            if let Some(endpoint) = stored.row(self.member.me).filter(|_| is_same) {
                return Ok(Attachment { endpoint, network });
            }
            if !stored.is_attached() {
                return Err(under_way());
            }
            // The runtime did not say that the container's last life ended.
            self.remove_attachments(|key| *key == spec.key).await?;
        }
        let key = spec.key.clone();
        if lock(&self.host.pending.asked).insert(key.clone(), false).is_some() {
            return Err(under_way());
        }
        let attached = self.attach_container(network.id, spec).await;
        lock(&self.host.pending.asked).remove(&key);
        let stored = attached?;
        let endpoint = stored.row(self.member.me).ok_or_else(|| gone("the endpoint is gone"))?;
        Ok(Attachment { endpoint, network })
    }

    /// Which wanted addresses a container gave back a moment ago. It has them again, and with them
    /// its MAC: neighbours remember both.
    fn take_back(&self, network: NetworkId, spec: &mut AttachmentSpec) -> Vec<IpAddr> {
        let given_back = lock(&self.host.pending.given_back);
        let mut again = Vec::new();
        for ip in &spec.ips {
            if let Some(mac) = given_back.mac((network, *ip), &spec.key.container) {
                spec.mac.get_or_insert(mac);
                again.push(*ip);
            }
        }
        again
    }

    /// Takes the containers of these keys out of their networks, and says which there were. After a
    /// failure the others are removed all the same.
    pub(super) async fn remove_attachments(
        self: &Arc<Self>,
        is_it: impl Fn(&AttachmentKey) -> bool,
    ) -> Result<Vec<Endpoint>, ApiError> {
        let mut hosted = self.lock_host().await?;
        self.give_up_asked(&is_it);
        let (mut removed, mut failed) = (Vec::new(), None);
        for endpoint in self.stored_endpoints()? {
            if !endpoint.attachment.as_ref().is_some_and(&is_it) {
                continue;
            }
            match self.detach_stored(&mut hosted, endpoint.id).await {
                Ok(()) => removed.extend(endpoint.row(self.member.me)),
                Err(error) => {
                    warn!(endpoint = %endpoint.name, %error, "a container is not taken out of its network");
                    failed = Some(error);
                }
            }
        }
        failed.map_or(Ok(removed), Err)
    }

    /// What a runtime asked for and is not written down yet never is.
    fn give_up_asked(&self, is_it: impl Fn(&AttachmentKey) -> bool) {
        let mut asked = lock(&self.host.pending.asked);
        asked.iter_mut().filter(|(key, _)| is_it(key)).for_each(|(_, given_up)| *given_up = true);
    }

    /// A network of the mesh that is usable.
    fn network_for_containers(&self, reference: &str) -> Result<Network, ApiError> {
        let (id, _network) = self.usable_network(reference).map_err(|error| match error.code {
            ErrorCode::NotFound => ApiError::new(
                ErrorCode::NotFound,
                format!("the mesh has no network `{reference}`"),
                format!("make it with `vxmesh network create {reference}`, or name another one"),
            ),
            _ => error,
        })?;
        if self.is_local(id) {
            return Err(ApiError::new(
                ErrorCode::Usage,
                format!("network `{reference}` is of one host"),
                "name one of the driver `overlay`; for one host there are the plug-ins `bridge` and `macvlan`",
            ));
        }
        self.find_network(&id.to_string())
    }

    /// The endpoint that a runtime calls so.
    fn stored_attachment(&self, key: &AttachmentKey) -> Result<Option<Stored>, ApiError> {
        let rows = self.endpoint_rows()?;
        Ok(rows.iter().find(|row| row.attachment.as_ref() == Some(key)).cloned())
    }

    /// Refuses a second endpoint of one key, and one that its runtime has given up.
    pub(super) fn check_no_attachment(&self, key: &AttachmentKey) -> Result<(), ApiError> {
        if lock(&self.host.pending.asked).get(key) == Some(&true) {
            let message = format!("container `{}` was removed while it was added", key.container);
            return Err(ApiError::new(ErrorCode::Failed, message, "add it again"));
        }
        self.stored_attachment(key)?.map_or(Ok(()), |_| Err(under_way()))
    }

    /// What a runtime calls so, if it is whole.
    pub(super) async fn attachment(
        self: &Arc<Self>,
        key: &AttachmentKey,
    ) -> Result<Attachment, ApiError> {
        self.end_if_vanished(|endpoint| endpoint.attachment.as_ref() == Some(key)).await;
        let endpoint = self.stored_attachment(key)?.and_then(|it| it.row(self.member.me));
        let endpoint = endpoint.ok_or_else(|| {
            ApiError::new(
                ErrorCode::NotFound,
                format!(
                    "container `{}` has no interface {} of the mesh",
                    key.container, key.ifname
                ),
                "start it anew",
            )
        })?;
        let network = self.find_network(&endpoint.network.to_string())?;
        Ok(Attachment { endpoint, network })
    }

    /// Plugs a container in, under the first name that nobody else has.
    async fn attach_container(
        self: &Arc<Self>,
        id: NetworkId,
        mut spec: AttachmentSpec,
    ) -> Result<Stored, ApiError> {
        let (_id, network) = self.usable_network(&id.to_string())?;
        self.end_if_vanished(|other| other.network == id && spec.names.contains(&other.name)).await;
        let again = self.take_back(id, &mut spec);
        let ips = self.allocate_again(&network, id, &spec.ips, &again).await?;
        match self.begin_container(id, &spec, &ips).await {
            Ok(endpoint) => self.attach_begun(endpoint).await,
            Err(error) => {
                for ip in &ips {
                    // Neighbours may still have the container's last MAC at one that it had before.
                    if again.contains(&ip.addr()) {
                        self.member.addresses.release(id, *ip, Instant::now());
                    } else {
                        self.member.addresses.put_back(id, *ip);
                    }
                }
                Err(error)
            }
        }
    }

    async fn begin_container(
        self: &Arc<Self>,
        id: NetworkId,
        spec: &AttachmentSpec,
        ips: &[IpNet],
    ) -> Result<Stored, ApiError> {
        let host = self.node_name(self.member.me);
        let mut names: Vec<Name> = Vec::new();
        for name in &spec.names {
            names.push(name.clone());
            names.extend(name_on(name, &host));
        }
        for name in names.into_iter().map(Some).chain([None]) {
            let is_last = name.is_none();
            let wanted = AttachSpec {
                network: id.to_string(),
                netns: spec.netns.clone(),
                name: name.clone(),
                aliases: spec.aliases.clone(),
                ips: Vec::new(),
                mac: spec.mac,
                ifname: Some(spec.key.ifname.clone()),
                labels: BTreeMap::new(),
                sandbox: None,
            };
            match self.begin(id, wanted, ips, Whose::Runtime(spec.key.clone())).await {
                // The name is another's, or cannot be one: the container starts all the same.
                Err(error)
                    if !is_last && matches!(error.code, ErrorCode::Conflict | ErrorCode::Usage) =>
                {
                    debug!(name = name.as_ref().map(Name::as_str), %error, "it is not called so");
                }
                Ok(endpoint) => {
                    if spec.names.first().is_some_and(|first| *first != endpoint.name) {
                        info!(name = %endpoint.name, wanted = ?spec.names, "a container has another name in the mesh");
                    }
                    return Ok(endpoint);
                }
                refused => return refused,
            }
        }
        Err(gone("the endpoint has no name"))
    }
}
