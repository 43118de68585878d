//! Owns what a lab shall look like: the flags of `lab up` over its TOML file over the defaults.
//!
//! ```toml
//! hosts = 3          # 1 to 250
//! underlay = "dual"  # or "v4", "v6"
//! mtu = 1500         # 1280 to 9000
//! ```
//! Refuses unknown keys and values out of range.

use std::{fs, net::IpAddr, path::Path};

use serde::{Deserialize, Serialize};

use super::name::{HostName, MAX_HOSTS};
use crate::api::{ApiError, ErrorCode};

const DEFAULT_HOSTS: u8 = 3;
const DEFAULT_MTU: u16 = 1500;
/// IPv6 needs 1280; the virtual cables carry 9000.
const MTU_RANGE: std::ops::RangeInclusive<u16> = 1280..=9000;
const HINT: &str = "a lab file has the keys hosts (1 to 250), underlay (\"v4\", \"v6\" or \"dual\") and mtu (1280 to 9000)";

/// Which IP versions the underlay speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Underlay {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    #[default]
    Dual,
}

impl Underlay {
    /// Whether hosts have IPv4 addresses.
    #[must_use]
    pub const fn has_v4(self) -> bool {
        matches!(self, Self::V4 | Self::Dual)
    }

    /// Whether hosts have IPv6 addresses.
    #[must_use]
    pub const fn has_v6(self) -> bool {
        matches!(self, Self::V6 | Self::Dual)
    }
}

/// What a lab looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    /// Hosts `h1` to `hN`.
    pub hosts: u8,
    /// Their addresses.
    pub underlay: Underlay,
    /// MTU of the underlay.
    pub mtu: u16,
}

impl Default for Plan {
    fn default() -> Self {
        Self { hosts: DEFAULT_HOSTS, underlay: Underlay::Dual, mtu: DEFAULT_MTU }
    }
}

impl Plan {
    /// The plan of a file, if there is one, with the number of hosts from the command line, if
    /// given.
    ///
    /// # Errors
    /// The file cannot be read or says what no lab can be.
    pub fn load(file: Option<&Path>, hosts: Option<u8>) -> Result<Self, ApiError> {
        let mut plan = match file {
            None => Self::default(),
            Some(path) => {
                let text = fs::read_to_string(path).map_err(|error| {
                    ApiError::new(
                        ErrorCode::Usage,
                        format!("cannot read {}: {error}", path.display()),
                        HINT,
                    )
                })?;
                Self::parse(&text).map_err(|what| {
                    ApiError::new(ErrorCode::Usage, format!("{}: {what}", path.display()), HINT)
                })?
            }
        };
        if let Some(hosts) = hosts {
            plan.hosts = hosts;
        }
        plan.check().map_err(|what| ApiError::new(ErrorCode::Usage, what, HINT))
    }

    /// The addresses of a host, IPv4 first.
    #[must_use]
    pub fn addresses(&self, host: HostName) -> Vec<IpAddr> {
        let v4 = self.underlay.has_v4().then(|| IpAddr::from(host.v4()));
        let v6 = self.underlay.has_v6().then(|| IpAddr::from(host.v6()));
        v4.into_iter().chain(v6).collect()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let plan: Self =
            toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        plan.check()
    }

    fn check(self) -> Result<Self, String> {
        if !(1..=MAX_HOSTS).contains(&self.hosts) {
            return Err(format!("a lab has 1 to {MAX_HOSTS} hosts, not {}", self.hosts));
        }
        if !MTU_RANGE.contains(&self.mtu) {
            return Err(format!(
                "the mtu is {} to {}, not {}",
                MTU_RANGE.start(),
                MTU_RANGE.end(),
                self.mtu
            ));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn files() {
        let all = Plan { hosts: 5, underlay: Underlay::V6, mtu: 9000 };
        for (text, plan) in [
            ("", Plan::default()),
            ("hosts = 250", Plan { hosts: 250, ..Plan::default() }),
            (
                "underlay = \"v4\"\nmtu = 1280",
                Plan { underlay: Underlay::V4, mtu: 1280, ..Plan::default() },
            ),
            ("hosts = 5\nunderlay = \"v6\"\nmtu = 9000", all),
        ] {
            assert_eq!(Plan::parse(text), Ok(plan), "{text}");
        }
        for (text, word) in [
            ("hosts = 0", "1 to 250"),
            ("hosts = 251", "1 to 250"),
            ("hosts = 256", "u8"),
            ("hosts = -1", "u8"),
            ("hosts = \"3\"", "string"),
            ("mtu = 1279", "1280 to 9000"),
            ("mtu = 9001", "1280 to 9000"),
            ("underlay = \"ipx\"", "ipx"),
            ("host = 3", "unknown field"),
            ("hosts =", ""),
        ] {
            let error = Plan::parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn the_flag_wins_over_the_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"hosts = 7\nmtu = 1400").unwrap();
        assert_eq!(Plan::load(Some(file.path()), None).unwrap().hosts, 7);
        let plan = Plan::load(Some(file.path()), Some(2)).unwrap();
        assert_eq!((plan.hosts, plan.mtu), (2, 1400));
        assert_eq!(Plan::load(None, Some(0)).unwrap_err().code, ErrorCode::Usage);
        assert_eq!(
            Plan::load(Some(Path::new("/nowhere")), None).unwrap_err().code,
            ErrorCode::Usage
        );
    }
}
