//! The way out of a network and in: what it looks like on this host.
//!
//! ```text
//! network's namespace                                            host's namespace
//! br0     gateway addresses, the same on every host
//! node0   this node's own addresses and MAC (cable to br0)
//! uplink0 169.254.x.y/31, ULA /128  ─────────────────────────── vxm<network>   169.254.x.y/31, fe80::1
//!         default route, NAT                                     routes to the subnets, NAT, published ports
//! ```
//!
//! [`uplink`] chooses addresses and makes the cable, [`sysctl`] sets what the host's kernel must do
//! and puts it back, [`publish`] owns ports of the host. Rules are [`crate::firewall`]'s.

pub mod publish;
pub mod sysctl;
pub mod uplink;
pub mod whole;
