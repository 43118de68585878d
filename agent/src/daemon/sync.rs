//! What this node says to others when it meets them, how object sets become equal, and what it
//! answers to requests.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{debug, warn};
use vxmesh_gossip::{directory::Directory, membership::Gossip};
use vxmesh_proto::{
    addr::{NetworkId, NodeId},
    control::{Push, Refusal, RefusalCode, Request, Response},
    ipam::{Need, Transfer, Withheld},
    lb::Protocol,
    object::{self, Comparison, Content, Draft, ObjectSet},
};

use super::mesh::Mesh;
use crate::{
    control::Caller,
    lock::lock,
    objects::{PublishError, unix_ms},
    services::ServiceError,
};

/// How long a node that leaves waits for a first meeting: it takes milliseconds, unless all others
/// are away.
const FIRST_MEETING: Duration = Duration::from_secs(3);
/// How long a request to another node may take.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// Records in one push; 1 KiB each at most, and a push may have 256 KiB.
const RECORDS_PER_PUSH: usize = 200;

impl Mesh {
    /// A connection with a member came up: tell it what this node claims, compare objects, gossip
    /// at once.
    pub(super) async fn greet(self: Arc<Self>, node: NodeId) {
        let (Some(control), Some(gossip)) = (self.member.control.get(), self.member.gossip.get())
        else {
            return;
        };
        let own: Vec<_> = gossip.with_directory(|directory| {
            let texts = directory.records_of(self.member.me).map(|entry| &entry.record);
            texts.map(|r| (r.owner(), r.key().to_string(), r.text().to_string())).collect()
        });
        // The keys first: records of a node that is no member yet wait for them.
        self.sync_with(node).await;
        for records in own.chunks(RECORDS_PER_PUSH) {
            let push = Push { records: records.to_vec(), objects: Vec::new() };
            if let Err(error) = control.push(node, &push) {
                warn!(node = %self.node_name(node), %error, "own records not pushed; gossip will bring them");
            }
        }
        gossip.call(node);
        self.compare_clocks(node).await;
        self.look_from(node).await;
    }

    /// Compares objects with a node, unless that was done a moment ago.
    pub(super) fn sync_soon(self: &Arc<Self>, node: NodeId) {
        if !self.member.sync.begin(node) {
            return;
        }
        let mesh = Arc::clone(self);
        tokio::spawn(async move { mesh.sync_with(node).await });
    }

    /// Compares objects with nodes that have differed for a while: what one of them refused may be
    /// admitted by now.
    pub(super) fn sync_again(self: &Arc<Self>, gossip: &Gossip) {
        let own = self.member.objects.read(ObjectSet::content_hash);
        let differing: Vec<NodeId> = gossip.with_directory(|directory| {
            let up = directory.objects().filter(|(node, _hash)| directory.is_up(*node));
            up.filter(|(_node, hash)| ***hash != *own).map(|(node, _hash)| node).collect()
        });
        for node in differing {
            if !self.member.sync.was_lately(node) {
                self.sync_soon(node);
            }
        }
    }

    /// Makes this node's set of objects and another's equal, page by page.
    pub(super) async fn sync_with(&self, node: NodeId) {
        let Some(control) = self.member.control.get() else { return };
        let mut comparison = self.member.objects.read(Comparison::begin);
        let mut after = None;
        loop {
            let digest = self.member.objects.read(|set| set.digest(after.take()));
            let until = digest.until.clone();
            let difference = match control
                .request(node, &Request::ObjectsDigest { digest }, ANSWER)
                .await
            {
                Ok(Response::ObjectsDifference { difference }) => difference,
                Ok(_) => {
                    return warn!(node = %self.node_name(node), "a node answers a digest with something else");
                }
                Err(error) => return debug!(%node, %error, "objects not compared"),
            };
            comparison.page(&difference);
            let theirs: Vec<String> = difference.texts.iter().map(ToString::to_string).collect();
            self.member.take_objects_off_runtime(node, &theirs);
            let wanted = self.member.objects.read(|set| set.texts(&difference.wanted));
            if !wanted.is_empty() {
                let objects = wanted.iter().map(ToString::to_string).collect();
                if let Err(error) =
                    control.request(node, &Request::ObjectsPush { objects }, ANSWER).await
                {
                    return debug!(%node, %error, "objects not sent");
                }
            }
            if until.is_none() {
                self.met(node);
                return lock(&self.member.allocation.roll).end(node, comparison);
            }
            after = until;
        }
    }

    /// Answers a member's request.
    pub(super) async fn answer(
        self: &Arc<Self>,
        caller: Caller,
        request: Request,
    ) -> Result<Response, Refusal> {
        let from = caller.node;
        match request {
            Request::Ping => Ok(Response::Pong),
            Request::Clock => Ok(Response::Clock { unix_ms: unix_ms() }),
            Request::ObjectsDigest { digest } => {
                let mesh = Arc::clone(self);
                off_runtime(move || {
                    // The other may count on it that what is shown here outlives this agent's life.
                    mesh.member.objects.settle();
                    let difference = mesh.member.objects.read(|set| set.difference(&digest));
                    Ok(Response::ObjectsDifference { difference })
                })
                .await
            }
            Request::ObjectsPush { objects } => {
                self.member.take_objects_off_runtime(from, &objects);
                Ok(Response::Done)
            }
            Request::RecordsPush { records } => {
                self.member.take_records(from, &records);
                self.reconcile().await;
                Ok(Response::Done)
            }
            Request::BlockRequest { network, subnet, want } => {
                let (mesh, need) = (Arc::clone(self), Need::of_wanted(want));
                off_runtime(move || mesh.give_blocks(from, network, subnet, need)).await
            }
            Request::AddressClaim { network, ip, endpoint: _ } => {
                let mesh = Arc::clone(self);
                off_runtime(move || mesh.give_address(from, network, ip)).await
            }
            Request::Map => {
                let rows =
                    self.map_rows().into_iter().filter_map(|row| serde_json::to_value(row).ok());
                Ok(Response::Map { rows: rows.collect() })
            }
            Request::RemoveNode { node, force } => {
                self.removal_asked(node, force).await.map(|()| Response::Done)
            }
            Request::Probe { ports } => Ok(self.probed(caller, ports).await),
            Request::Hears { from: about, to } => self.heard(from, about, to).await,
            Request::CheckBackend { network, endpoint, protocol, port } => {
                let accepts = match Protocol::of_number(protocol) {
                    Some(it) => self.services.check(self, network, endpoint, (it, port)).await,
                    None => None,
                };
                Ok(Response::BackendChecked { accepts })
            }
            Request::ChangePlace { drain, zone } => {
                let changed = self.services.change_place(self, drain, zone.as_deref());
                let changed = changed.map_err(|why| {
                    let code = match why {
                        ServiceError::Zone(_) => RefusalCode::Malformed,
                        _ => RefusalCode::Failed,
                    };
                    refusal(code, why.to_string())
                });
                changed.map(|()| Response::Done)
            }
            Request::GrantIssuer { key } => {
                self.granted(from, zeroize::Zeroizing::new(key.0)).await.map(|()| Response::Done)
            }
            Request::KeepIssuer => self.promised(from).map(|()| Response::Done),
            Request::WithdrawIssuer => self.withdrawn(from).await.map(|()| Response::Done),
            Request::Leave => Ok(Response::Done),
            Request::Join(_) | Request::ForwardJoin(_) | Request::Renew(_) => {
                Err(refusal(RefusalCode::Unsupported, "the control plane answers this itself"))
            }
        }
    }

    fn give_blocks(
        &self,
        to: NodeId,
        network: NetworkId,
        subnet: ipnet::IpNet,
        need: Need,
    ) -> Result<Response, Refusal> {
        self.check_room(to)?;
        self.check_shared(network)?;
        let mut elsewhere = self.member.elsewhere(network);
        if let Some(gossip) = self.member.gossip.get() {
            // What rests with the node that asks is of no use to it now.
            let resting = |directory: &Directory| -> Vec<IpAddr> {
                directory.released(network).map(|(ip, _since)| ip).collect()
            };
            elsewhere.extend(gossip.with_directory(resting));
        }
        let given = self
            .member
            .addresses
            .with_pool(network, subnet, |pool| pool.give(to, need, &elsewhere, Instant::now()));
        match given {
            None => Err(refusal(RefusalCode::NotFound, "this node knows no such subnet")),
            Some(Err(why @ Withheld::TooOften)) => {
                Err(refusal(RefusalCode::RateLimited, why.to_string()))
            }
            Some(Err(why)) => Err(refusal(RefusalCode::Conflict, why.to_string())),
            Some(Ok(gift)) => self.answer_transfers(network, gift),
        }
    }

    fn give_address(
        &self,
        to: NodeId,
        network: NetworkId,
        ip: IpAddr,
    ) -> Result<Response, Refusal> {
        self.check_room(to)?;
        self.check_shared(network)?;
        let elsewhere = self.member.elsewhere(network);
        let subnet =
            self.member.addresses.subnets(network).into_iter().find(|subnet| subnet.contains(&ip));
        let given = subnet.and_then(|subnet| {
            self.member.addresses.with_pool(network, subnet, |pool| {
                pool.give_address(ip, to, &elsewhere, Instant::now())
            })
        });
        match given {
            None => Err(refusal(RefusalCode::NotFound, "this node knows no such subnet")),
            Some(Err(why)) => Err(refusal(RefusalCode::Conflict, self.name_holder(network, &why))),
            Some(Ok(transfer)) => self.answer_transfers(network, vec![transfer]),
        }
    }

    /// A network of this host is nobody else's business.
    fn check_shared(&self, network: NetworkId) -> Result<(), Refusal> {
        if self.is_local(network) {
            return Err(refusal(RefusalCode::NotFound, "this node knows no such subnet"));
        }
        Ok(())
    }

    /// A block is given up before its transfer is signed: one that could not be would be nobody's
    /// until the next start.
    fn check_room(&self, to: NodeId) -> Result<(), Refusal> {
        self.check_proof()?;
        if self.member.objects.read(|set| set.is_removed(to)) {
            return Err(refusal(RefusalCode::NotMember, "the node that asks was removed"));
        }
        if self.member.objects.read(|set| set.has_room(self.member.me)) {
            return Ok(());
        }
        Err(refusal(RefusalCode::Conflict, object::Refused::Quota(self.member.me).to_string()))
    }

    fn answer_transfers(
        &self,
        network: NetworkId,
        transfers: Vec<Transfer>,
    ) -> Result<Response, Refusal> {
        let signed = transfers.into_iter().map(|transfer| self.sign_transfer(network, transfer));
        let objects: Vec<String> = signed.collect::<Result<_, _>>()?;
        self.member.push_objects(objects.clone());
        Ok(Response::Objects { objects })
    }

    /// Signs a transfer and writes it down before anybody hears of it.
    pub(crate) fn sign_transfer(
        &self,
        network: NetworkId,
        transfer: Transfer,
    ) -> Result<String, Refusal> {
        let Transfer { block: cidr, from, to, epoch } = transfer;
        let noted = self.note_gift();
        noted.map_err(|error| refusal(RefusalCode::Failed, error.to_string()))?;
        let content = Content::Transfer(object::Transfer { network, cidr, from, to, epoch });
        let signed = self
            .member
            .objects
            .publish::<PublishError>(|_set, hlc| Ok(Draft::new(hlc, content)))
            .map_err(|error| refusal(RefusalCode::Failed, error.to_string()))?;
        Ok(signed.text().to_string())
    }
}

pub(super) fn refusal(code: RefusalCode, message: impl Into<String>) -> Refusal {
    Refusal { code, message: message.into() }
}

/// Runs work that waits for the disk.
async fn off_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(refusal(RefusalCode::Failed, error.to_string())))
}

impl Mesh {
    /// Waits a moment for a first meeting: a node that has just joined or started has met nobody
    /// yet, and knows only the addresses of others. Once it has signed that it leaves, it looks for
    /// nobody any more.
    pub(super) async fn await_first_meeting(&self) {
        let are_others =
            lock(&self.member.location.known).keys().any(|node| *node != self.member.me);
        if are_others && !self.member.is_removed() {
            let mut met = self.member.sync.met.subscribe();
            // Whoever is alone leaves unheard, and is told so.
            drop(tokio::time::timeout(FIRST_MEETING, met.wait_for(|met| *met)).await);
        }
    }

    /// Hands everybody who is connected the last objects of this node, and waits until they have
    /// them. How many took them.
    pub(super) async fn say_goodbye(&self, texts: &[String]) -> usize {
        self.member.tell(texts, |_node| true, ANSWER).await
    }
}
