//! What is pushed to other nodes, and taken from them.

use std::time::{Duration, Instant};

use tracing::{debug, warn};
use vxmesh_proto::{
    addr::NodeId,
    control::{Push, Request, Response},
    limits::OBJECT_BATCH_LEN,
    record::SignedRecord,
};

use super::Member;
use crate::control::{Control, ControlError};

/// How long one is asked again whose connection breaks, and how often.
const INSISTS: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(50);
/// How long a new endpoint waits for all nodes to know it: it is to be reachable in 200 ms.
const TOLD: Duration = Duration::from_millis(150);

impl Member {
    /// Sends records of this node to everybody who is connected.
    pub(crate) fn push_records(&self, records: &[SignedRecord]) {
        let records =
            records.iter().map(|r| (r.owner, r.key.to_string(), r.text.to_string())).collect();
        self.push(&Push { records, objects: Vec::new() });
    }

    /// Sends objects to everybody who is connected.
    pub(crate) fn push_objects(&self, objects: impl IntoIterator<Item = String>) {
        self.push(&Push { records: Vec::new(), objects: objects.into_iter().collect() });
    }

    fn push(&self, push: &Push) {
        let Some(control) = self.control.get() else { return };
        for peer in control.peers().into_iter().filter(|peer| peer.connected) {
            if let Err(error) = control.push(peer.node, push) {
                warn!(node = %self.name_of(peer.node), %error, "push not sent; gossip will bring it");
            }
        }
    }

    /// Publishes a record that was just signed: to all at once.
    pub(crate) fn spread(&self, record: &SignedRecord) {
        self.push_records(std::slice::from_ref(record));
    }

    /// Tells everybody who is connected of a record and waits until their tables follow it, or for
    /// as long as a user may wait for a node that hangs; that one hears of it by gossip.
    pub(crate) async fn spread_and_wait(&self, record: &SignedRecord) {
        let Some(control) = self.control.get() else { return };
        let records = vec![(record.owner, record.key.to_string(), record.text.to_string())];
        let request = &Request::RecordsPush { records };
        let connected = control.peers().into_iter().filter(|peer| peer.connected);
        let told = connected.map(|peer| async move {
            if let Err(error) = control.request(peer.node, request, TOLD).await {
                debug!(node = %peer.node, %error, "record not acknowledged; gossip will bring it");
            }
        });
        futures_util::future::join_all(told).await;
    }

    /// Hands objects to those who are connected, and waits until they have them, or for so long.
    /// How many took them.
    pub(crate) async fn tell(
        &self,
        texts: &[String],
        whom: impl Fn(NodeId) -> bool,
        patience: Duration,
    ) -> usize {
        let Some(control) = self.control.get() else { return 0 };
        let requests: Vec<Request> =
            batches(texts).into_iter().map(|objects| Request::ObjectsPush { objects }).collect();
        let requests = &requests;
        let connected =
            control.peers().into_iter().filter(|peer| peer.connected && whom(peer.node));
        let told = connected.map(|peer| {
            let control = control.clone();
            async move {
                for request in requests {
                    if let Err(error) = insist(&control, peer.node, request, patience).await {
                        debug!(node = %peer.node, %error, "objects not taken; others will tell");
                        return false;
                    }
                }
                true
            }
        });
        futures_util::future::join_all(told).await.into_iter().filter(|took| *took).count()
    }

    /// Merges objects from a node. Blocks for a disk write.
    pub(crate) fn take_objects(&self, node: NodeId, texts: &[String]) {
        if let Err(error) = self.objects.merge(node, texts.iter().map(String::as_str)) {
            warn!(%error, "objects are not kept on disk; free some space");
        }
    }

    pub(crate) fn take_objects_off_runtime(&self, node: NodeId, texts: &[String]) {
        if !texts.is_empty() {
            // A disk write: the runtime gives this thread up meanwhile.
            tokio::task::block_in_place(|| self.take_objects(node, texts));
        }
    }

    /// Merges records from a node.
    pub(crate) fn take_records(&self, node: NodeId, records: &[(NodeId, String, String)]) {
        if let Some(gossip) = self.gossip.get() {
            let pushed = gossip.handle_push(node, records);
            debug!(%node, ?pushed, "records pushed");
        }
    }
}

/// Texts in the same order, as many together as one message may hold.
fn batches(texts: &[String]) -> Vec<Vec<String>> {
    let mut batches: Vec<Vec<String>> = Vec::new();
    let mut room = 0;
    for text in texts {
        match batches.last_mut().filter(|_| text.len() <= room) {
            Some(batch) => batch.push(text.clone()),
            None => {
                batches.push(vec![text.clone()]);
                room = OBJECT_BATCH_LEN;
            }
        }
        room = room.saturating_sub(text.len());
    }
    batches
}

/// Asks again where the connection breaks: of two that were made at the same time one is closed.
async fn insist(
    control: &Control,
    node: NodeId,
    request: &Request,
    patience: Duration,
) -> Result<Response, ControlError> {
    let ends = Instant::now() + patience.min(INSISTS);
    loop {
        match control.request(node, request, patience).await {
            Err(ControlError::Broken { .. } | ControlError::NotConnected(_))
                if Instant::now() < ends =>
            {
                tokio::time::sleep(AGAIN).await;
            }
            said => return said,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_order_and_bound() {
        let texts: Vec<String> =
            [10, OBJECT_BATCH_LEN, 5, OBJECT_BATCH_LEN - 5, 1].map(|len| "x".repeat(len)).into();
        let lens = |batch: &Vec<String>| batch.iter().map(String::len).collect::<Vec<_>>();
        let batches = batches(&texts);
        let lens: Vec<_> = batches.iter().map(lens).collect();
        assert_eq!(
            lens,
            [vec![10], vec![OBJECT_BATCH_LEN], vec![5, OBJECT_BATCH_LEN - 5], vec![1]]
        );
    }
}
