//! Whether the other side of a connection hears this one.
//!
//! QUIC ends a connection that is silent, and only after a long time. Where one direction is cut,
//! the node that still hears the other would go on for as long. Here it looks for acknowledgements,
//! and asks for one when there were none lately.

use std::time::Instant;

use quinn::Connection;
use tokio::time::{MissedTickBehavior, interval};
use vxmesh_proto::{
    addr::NodeId,
    control::{REQUEST_LEN, Request, encode},
};

use super::{
    limits::{PROBE, UNANSWERED},
    link,
};

/// Ends when nothing that was sent has been acknowledged for [`UNANSWERED`].
pub(super) async fn until_unanswered(node: NodeId, connection: &Connection) {
    let Ok(ping) = encode(&Request::Ping, REQUEST_LEN) else {
        return std::future::pending().await;
    };
    let mut ticks = interval(PROBE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut acknowledged, mut looked) = (0, Instant::now());
    let mut asked: Option<Instant> = None;
    loop {
        ticks.tick().await;
        let starved = looked.elapsed() >= PROBE * 2;
        looked = Instant::now();
        let acks = connection.stats().frame_rx.acks;
        // Who did not run itself has heard nobody.
        if acks != acknowledged || starved {
            acknowledged = acks;
            asked = None;
            continue;
        }
        match asked {
            Some(at) if at.elapsed() >= UNANSWERED => {
                tracing::debug!(%node, "a connection is not answered");
                return;
            }
            Some(_) => {}
            None => {
                asked = Some(Instant::now());
                let (connection, ping) = (connection.clone(), ping.clone());
                tokio::spawn(async move {
                    // What counts is that it is acknowledged.
                    if let Err(error) = link::ask(&connection, node, &ping).await {
                        tracing::trace!(%node, %error, "a ping is not answered");
                    }
                });
            }
        }
    }
}
