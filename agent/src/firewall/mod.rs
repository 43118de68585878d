//! Tables of nf_tables: written whole and atomically, compared, mended, removed. No other program
//! is started.
//!
//! ```text
//! host's namespace       inet vxmesh   NAT of the uplinks, published ports, what may be forwarded   [`host`], [`ports`], [`closed`]
//!                        ip, ip6       two accepting rules in every chain of others that drops     [`foreign`]
//! network's namespace    inet vxmesh   NAT to the uplink, published ports                            [`network`]
//!                        bridge vxmesh what a sandbox may say, and as whom                           [`guard`], [`guarded`]
//!                        bridge vxmesh_services  answers of local backends go to the agent           [`services`]
//! sandbox's namespace    netdev vxmesh the way to its name server                                     [`detour`]
//! ```
//!
//! [`rule`] and [`frame`] are the language, [`table`] a table as it shall be, [`user_data`] how a
//! rule is known again, [`socket`] the way to the kernel (netfilter netlink, one transaction per
//! change), [`flows`] what the kernel remembers of rules that are gone, [`incoming`] whether others
//! let in what agents send. What a table shall be is computed by pure functions from what is
//! wanted; whatever the kernel has in its place is replaced.

pub mod clients;
mod closed;
pub mod counted;
pub mod detour;
pub mod flows;
pub mod foreign;
pub mod frame;
pub mod guard;
pub mod guarded;
pub mod host;
pub mod incoming;
mod last_word;
pub mod network;
pub mod obstacles;
pub mod ports;
pub mod rule;
pub mod services;
mod socket;
pub mod table;
mod user_data;

use std::io;

use thiserror::Error;

/// The name of the tables of this program but for one.
pub const TABLE: &str = "vxmesh";
/// All names of its tables.
const TABLES: [&str; 2] = [TABLE, services::TABLE];

/// Why a table is not as it should be.
#[derive(Debug, Error)]
#[error("cannot {what} the firewall's {name}: {source}")]
pub struct FirewallError {
    what: &'static str,
    name: String,
    source: io::Error,
}

impl FirewallError {
    fn new(what: &'static str, name: impl Into<String>, source: io::Error) -> Self {
        Self { what, name: name.into(), source }
    }

    /// Whether something was gone by the time it was to be changed.
    fn is_overtaken(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}
