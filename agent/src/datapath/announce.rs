//! What the local network is told of remote endpoints, written to its TAP: the bridge gives it to
//! all sandboxes and to this node.

use std::{sync::Arc, time::Duration};

use vxmesh_proto::path::announce::Announcement;

use super::{deliver, drops::Drops, port::Port};

/// Frames at once: the bridge copies each for every port, and the kernel keeps a thousand for each
/// CPU (`net.core.netdev_max_backlog`).
const AT_ONCE: usize = 16;
/// How long the others wait. So much comes only when a network with many endpoints is new on the
/// host.
const PAUSE: Duration = Duration::from_millis(10);

/// Announces them, a few at a time. Needs a tokio runtime.
pub(super) fn announce<T: Send + Sync + 'static>(
    drops: &Arc<Drops>,
    port: &Arc<Port<T>>,
    news: &[Announcement],
) {
    let (first, others) = news.split_at(news.len().min(AT_ONCE));
    write(drops, port, first);
    if others.is_empty() {
        return;
    }
    // It must not keep the TAP of a network that goes.
    let (drops, port, others) = (Arc::clone(drops), Arc::downgrade(port), others.to_vec());
    tokio::spawn(async move {
        for some in others.chunks(AT_ONCE) {
            tokio::time::sleep(PAUSE).await;
            let Some(port) = port.upgrade() else { return };
            write(&drops, &port, some);
        }
    });
}

fn write<T>(drops: &Drops, port: &Port<T>, news: &[Announcement]) {
    for announcement in news {
        // What is not taken is counted.
        let _taken = deliver(drops, port, &announcement.to_frame());
    }
}
