//! Owns the names of labs and of their hosts, which become file, namespace and interface names.
//!
//! A lab is `[a-z0-9]([a-z0-9-]*[a-z0-9])?`, at most 24 characters; a host is `h1`..`h250`.
//! Namespace names are `LAB-hN` and `LAB-wire`: two labs can never own the same one, because the
//! part after the last hyphen decides. Refuses everything else, so no name can leave its directory
//! or be cut short by the kernel.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use vxmesh_proto::addr::MacAddr;

/// Hosts that fit the underlay's 10.213.0.0/24 with room to spare.
pub(super) const MAX_HOSTS: u8 = 250;
/// Keeps every path below the 108 bytes of a socket address.
const MAX_LAB_NAME: usize = 24;

/// Why a name was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a lab's name.
    #[error(
        "a lab's name has 1 to 24 of the characters a-z, 0-9 and -, and a letter or digit at both ends"
    )]
    Lab,
    /// Not a host's name.
    #[error("a host of a lab is h1 to h{MAX_HOSTS}")]
    Host,
}

/// The name of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LabName(String);

impl LabName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The namespace that holds the underlay's bridges.
    #[must_use]
    pub fn wire_netns(&self) -> String {
        format!("{self}-wire")
    }

    /// The namespace of one host.
    #[must_use]
    pub fn host_netns(&self, host: HostName) -> String {
        format!("{self}-{host}")
    }

    /// Whether a namespace of this name belongs to this lab.
    #[must_use]
    pub fn owns_netns(&self, netns: &str) -> bool {
        netns
            .strip_prefix(self.as_str())
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|rest| rest == "wire" || rest.parse::<HostName>().is_ok())
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LabName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        let ends = [bytes.first(), bytes.last()];
        let good = bytes.len() <= MAX_LAB_NAME
            && ends.iter().all(|end| end.is_some_and(|&byte| plain(byte)))
            && bytes.iter().all(|&byte| plain(byte) || byte == b'-');
        if good { Ok(Self(text.to_owned())) } else { Err(NameError::Lab) }
    }
}

/// The name of a host: `h` and its number, which starts at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(u8);

impl HostName {
    /// Hosts `h1` to `hN`.
    pub fn first(count: u8) -> impl Iterator<Item = Self> + Clone {
        (1..=count).map(Self)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Its address in the IPv4 underlay.
    #[must_use]
    pub const fn v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, 0, self.0)
    }

    /// Its address in the IPv6 underlay.
    #[must_use]
    pub const fn v6(self) -> Ipv6Addr {
        // fd13::10 is host 16: the number stands in the address as every tool prints it, in
        // hexadecimal.
        Ipv6Addr::new(0xfd13, 0, 0, 0, 0, 0, 0, self.0 as u16)
    }

    /// The MAC address of its interface, locally administered.
    #[must_use]
    pub const fn mac(self) -> MacAddr {
        MacAddr([0x02, 0x76, 0x78, 0x6d, 0, self.0])
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "h{}", self.0)
    }
}

impl FromStr for HostName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let digits = text.strip_prefix('h').ok_or(NameError::Host)?;
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) || digits.starts_with('0') {
            return Err(NameError::Host);
        }
        match digits.parse() {
            Ok(number @ 1..=MAX_HOSTS) => Ok(Self(number)),
            Ok(_) | Err(_) => Err(NameError::Host),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lab_names() {
        for good in ["a", "vxlab", "a-b", "0", "x23456789012345678901234"] {
            assert_eq!(good.parse::<LabName>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
        for bad in
            ["", "-", "-a", "a-", "A", "a/b", "..", "a b", "ä", "x234567890123456789012345", "a\n"]
        {
            assert_eq!(bad.parse::<LabName>(), Err(NameError::Lab), "{bad:?}");
        }
    }

    #[test]
    fn host_names() {
        for (text, number) in [("h1", 1), ("h9", 9), ("h250", 250)] {
            assert_eq!(text.parse::<HostName>().map(HostName::number), Ok(number));
        }
        for bad in [
            "",
            "h",
            "h0",
            "h01",
            "h251",
            "h256",
            "h99999999999",
            "1",
            "x1",
            "h+1",
            "h-1",
            "h1 ",
            "H1",
        ] {
            assert_eq!(bad.parse::<HostName>(), Err(NameError::Host), "{bad:?}");
        }
    }

    #[test]
    fn a_lab_owns_its_namespaces_only() {
        let lab: LabName = "a".parse().unwrap();
        for mine in ["a-wire", "a-h1", "a-h250"] {
            assert!(lab.owns_netns(mine), "{mine}");
        }
        for other in [
            "a",
            "a-",
            "a-h0",
            "a-h01",
            "a-h1-h1",
            "a-h1-wire",
            "b-h1",
            "aa-h1",
            "-h1",
            "a-wires",
            "a-h251",
        ] {
            assert!(!lab.owns_netns(other), "{other}");
        }
    }

    proptest! {
        #[test]
        fn no_two_labs_own_one_namespace(a in "[a-z0-9h-]{1,12}", b in "[a-z0-9h-]{1,12}", number in 1..=MAX_HOSTS) {
            if let (Ok(a), Ok(b)) = (a.parse::<LabName>(), b.parse::<LabName>()) {
                prop_assert_eq!(b.owns_netns(&a.host_netns(HostName(number))), a == b);
                prop_assert_eq!(b.owns_netns(&a.wire_netns()), a == b);
            }
        }

        #[test]
        fn any_text_is_judged_without_panic(text in ".*") {
            if let Ok(host) = text.parse::<HostName>() {
                prop_assert_eq!(host.to_string(), text.clone());
            }
            if let Ok(lab) = text.parse::<LabName>() {
                prop_assert_eq!(lab.to_string(), text);
            }
        }
    }
}
