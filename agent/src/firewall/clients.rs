//! Which clients a published port is for, by their addresses: [`Clients`].

use std::{net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::rule::{Clause, source, source_not};

/// Which clients a port is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Clients {
    /// Those in one of these prefixes; all, if there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<IpNet>,
    /// But not those in these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<IpNet>,
}

impl Clients {
    /// Whether it is for all.
    #[must_use]
    pub const fn are_all(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// Whether it is for this one.
    #[must_use]
    pub fn have(&self, ip: IpAddr) -> bool {
        let meets = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip));
        (self.allow.is_empty() || meets(&self.allow)) && !meets(&self.deny)
    }

    /// Each of these is met by clients of an IP version that it is for.
    pub(super) fn clauses(&self, ipv4: bool) -> Vec<Clause> {
        let of_version = |net: &&IpNet| net.addr().is_ipv4() == ipv4;
        let denied = self.deny.iter().filter(of_version).map(|net| source_not(*net));
        let others = denied.fold(Clause::default(), Clause::and);
        if self.allow.is_empty() {
            return vec![others];
        }
        let allowed = self.allow.iter().filter(of_version);
        allowed.map(|net| source(*net).and(others.clone())).collect()
    }
}

/// The prefixes of clients that are allowed, as they are written in one word:
/// `10.0.0.0/8,fd00::/8`, or `all`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed(pub Vec<IpNet>);

impl FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" { Ok(Self(Vec::new())) } else { prefixes(text, "all").map(Self) }
    }
}

/// Those that are denied: `10.0.0.0/8,fd00::/8`, or `none`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied(pub Vec<IpNet>);

impl FromStr for Denied {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" { Ok(Self(Vec::new())) } else { prefixes(text, "none").map(Self) }
    }
}

fn prefixes(text: &str, other: &str) -> Result<Vec<IpNet>, String> {
    let prefix = |text: &str| -> Result<IpNet, String> {
        // As programs write an IPv4 address that speak IPv6 only.
        let address = || text.parse::<IpAddr>().ok().map(|ip| IpNet::from(ip.to_canonical()));
        let net = text.parse::<IpNet>().ok().or_else(address);
        let is_mapped = |net: &IpNet| net.addr().to_canonical() != net.addr();
        net.filter(|net| !is_mapped(net))
            .map(|net| net.trunc())
            .ok_or_else(|| format!("`{text}` is no prefix: write 10.0.0.0/8, fd00::/8 or {other}"))
    };
    text.split(',').map(prefix).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_denied_is_not_allowed() {
        let prefixes = |text: &str| -> Vec<IpNet> { text.parse::<Allowed>().unwrap().0 };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let all = Clients::default();
        assert!(all.are_all() && all.have(ip("192.0.2.1")) && all.have(ip("2001:db8::1")));
        let allow = prefixes("10.1.2.3/8,fd00::/8");
        let some = Clients { allow, deny: prefixes("10.9.0.0/16,fd00::7") };
        for (client, is_its) in [
            ("10.0.0.1", true),
            ("10.9.0.1", false),
            ("192.0.2.1", false),
            ("fd00::6", true),
            ("fd00::7", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(some.have(ip(client)), is_its, "{client}");
        }
        assert_eq!((some.clauses(true).len(), some.clauses(false).len()), (1, 1));
        // None of the other version is allowed.
        let four = Clients { allow: prefixes("10.0.0.0/8"), deny: Vec::new() };
        assert_eq!((four.clauses(true).len(), four.clauses(false).len()), (1, 0));
        let rest = Clients { allow: prefixes("all"), deny: prefixes("10.0.0.0/8,11.0.0.0/8") };
        assert_eq!((rest.clauses(true).len(), rest.clauses(false).len()), (1, 1));
        assert_eq!(prefixes("::ffff:10.0.0.5"), prefixes("10.0.0.5/32"));
        assert_eq!("none".parse(), Ok(Denied(Vec::new())));
        for bad in ["", "10.0.0.0/33", "10.0.0.0/8,", "none", "::ffff:10.0.0.0/104"] {
            assert!(bad.parse::<Allowed>().is_err(), "{bad}");
        }
        assert!("all".parse::<Denied>().is_err());
    }
}
