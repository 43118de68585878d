//! What carries a network, and how far it reaches.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Options that are limits of a network.
pub(crate) const OPT_MULTICAST_RATE: &str = "multicast_rate";
/// See [`OPT_MULTICAST_RATE`].
pub(crate) const OPT_MULTICAST_HOST_RATE: &str = "multicast_host_rate";
/// See [`OPT_MULTICAST_RATE`].
pub(crate) const OPT_DNS_RATE: &str = "dns_rate";
/// See [`OPT_MULTICAST_RATE`].
pub(crate) const OPT_DNS_FORWARD_RATE: &str = "dns_forward_rate";
/// See [`OPT_MULTICAST_RATE`].
pub(crate) const OPT_LEARNED_STATIONS: &str = "learned_stations";

/// What carries a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// All hosts of the mesh: sealed VXLAN between them [-o multicast_rate=N] [-o
    /// multicast_host_rate=N] [-o dns_rate=N] [-o dns_forward_rate=N] [-o learned_stations=N]
    #[default]
    Overlay,
    /// This host only
    Bridge,
    /// The network that an interface of this host is in: -o parent=IF[.VID] [-o macvlan_mode=MODE]
    Macvlan,
}

impl Driver {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Bridge => "bridge",
            Self::Macvlan => "macvlan",
        }
    }

    /// The options that it has.
    #[must_use]
    pub const fn options(self) -> &'static [&'static str] {
        match self {
            Self::Overlay => &[
                OPT_MULTICAST_RATE,
                OPT_MULTICAST_HOST_RATE,
                OPT_DNS_RATE,
                OPT_DNS_FORWARD_RATE,
                OPT_LEARNED_STATIONS,
            ],
            Self::Bridge => &[],
            Self::Macvlan => &["parent", "macvlan_mode"],
        }
    }

    /// Where its networks are: on all hosts of the `mesh`, or `local`.
    #[must_use]
    pub const fn scope(self) -> &'static str {
        match self {
            Self::Overlay => "mesh",
            Self::Bridge | Self::Macvlan => "local",
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
