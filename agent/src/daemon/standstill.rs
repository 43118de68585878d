//! What an agent does that goes on after it was not there: its host was suspended, or the whole
//! machine was set back to an image of its memory.
//!
//! ```text
//! wall clock leaps ahead (`Pulse`) : sessions and connections are made anew
//! the hypervisor says "an image"   : the same; no address is given out before another node is met
//! timers fire late                 : nothing here; gossip judges no other node for a while, and meets all again
//! ```
//!
//! What others heard of this node after the image was made, it says again or takes back when it
//! hears of it from them (`vxmesh_gossip`).

use std::time::Duration;

use tracing::{info, warn};

use super::mesh::Mesh;

impl Mesh {
    /// The others went on for a while without this host.
    pub(super) async fn outlive_standstill(&self, missed: Duration) {
        let seconds = missed.as_secs();
        info!(
            "this host stood still for {seconds} s, or its clock was set ahead: it meets the others anew"
        );
        self.meet_anew().await;
    }

    /// This machine knows nothing of what it did after its image was made.
    pub(super) async fn outlive_image(&self) {
        warn!(
            "this machine goes on from an image: it meets the others anew before it gives out an address"
        );
        self.doubt();
        self.meet_anew().await;
    }

    async fn meet_anew(&self) {
        self.host.plane.start_over().await;
        if let Some(control) = self.member.control.get() {
            control.redial();
        }
    }
}
