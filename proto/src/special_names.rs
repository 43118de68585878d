//! Names that programs take for something else: no resolver asks anybody for them, or asks somebody
//! else. An endpoint that has one of them is never found by it.
//!
//! | name | taken for | by |
//! |---|---|---|
//! | its last label is a number: `10`, `0x10`, `1.2` | an IPv4 address | inet_aton(3), so every libc; the URL standard (section 3.5) |
//! | `localhost`, and what ends in it; `localhost.localdomain`; `ip6-localhost`, `ip6-loopback` | this host | RFC 6761 section 6.3, nss-myhostname, /etc/hosts |
//! | `_gateway`, `_outbound`, `_localdnsstub`, `_localdnsproxy` | what systemd-resolved knows | nss-resolve, nss-myhostname |
//! | `invalid`, `onion`, and what ends in them | no name | RFC 6761 section 6.4, RFC 7686 |
//! | as a network: `local` | a name of multicast DNS | RFC 6762 section 3, nss-mdns |
//! | as a network: `arpa` | reverse names | RFC 1035 section 3.5 |

use std::net::Ipv4Addr;

/// For what programs take this name of an endpoint; nothing if they ask for it.
#[must_use]
pub fn taken_for(name: &str) -> Option<&'static str> {
    let last = name.rsplit('.').next().unwrap_or(name);
    match last {
        _ if is_number(last) => Some("an IPv4 address"),
        "localhost" | "ip6-localhost" | "ip6-loopback" => Some("their own host"),
        "localdomain" if of_localdomain(name) => Some("their own host"),
        "_gateway" | "_outbound" | "_localdnsstub" | "_localdnsproxy" => {
            Some("what systemd-resolved knows by it")
        }
        "invalid" | "onion" => Some("a name that nobody may be asked for"),
        _ => None,
    }
}

/// The same of a network, whose name ends the names of its endpoints.
#[must_use]
pub fn network_taken_for(name: &str) -> Option<&'static str> {
    match name {
        "local" => Some("the domain of multicast DNS"),
        "arpa" => Some("the domain of reverse names"),
        _ => taken_for(name),
    }
}

fn of_localdomain(name: &str) -> bool {
    let host = name.strip_suffix(".localdomain").unwrap_or_default();
    host == "localhost" || host.ends_with(".localhost")
}

/// Decimal, octal or hexadecimal, as the URL standard has it.
fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    match hex {
        Some(digits) => digits.bytes().all(|c| c.is_ascii_hexdigit()),
        None => !label.is_empty() && label.bytes().all(|c| c.is_ascii_digit()),
    }
}

/// The IPv4 address that a text is in one of the forms of inet_aton(3): one to four numbers with
/// dots between, decimal, octal (`010`) or hexadecimal (`0x10`), of which the last one fills all
/// bytes that are left.
#[must_use]
pub fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    let number = |part: &str| match part.strip_prefix("0x").or_else(|| part.strip_prefix("0X")) {
        Some(hex) if !hex.starts_with('+') => u32::from_str_radix(hex, 16).ok(),
        None if part.len() > 1 && part.starts_with('0') => u32::from_str_radix(part, 8).ok(),
        None if part.bytes().all(|c| c.is_ascii_digit()) => part.parse().ok(),
        Some(_) | None => None,
    };
    let parts = text.split('.').map(number).collect::<Option<Vec<u32>>>()?;
    let (last, before) = parts.split_last()?;
    let left = 4usize.checked_sub(before.len()).filter(|left| *left > 0)?;
    let fits = u64::from(*last) < 1 << (8 * left) && before.iter().all(|part| *part < 256);
    let shifts = [24, 16, 8];
    let high = before.iter().zip(shifts).fold(0, |sum, (part, shift)| sum | (part << shift));
    fits.then(|| Ipv4Addr::from_bits(high | last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nobody_would_ask_for_are_known() {
        for bad in [
            "10",
            "0x10",
            "0x",
            "010",
            "1.2",
            "web.1",
            "a.0xff",
            "1.2.3.4",
            "localhost",
            "db.localhost",
            "localhost.localdomain",
            "ip6-localhost",
            "_gateway",
            "onion",
            "x.onion",
            "invalid",
        ] {
            assert!(taken_for(bad).is_some() && network_taken_for(bad).is_some(), "{bad}");
        }
        for good in [
            "web",
            "web-1",
            "1a",
            "0xg",
            "x10",
            "1.web",
            "web.local",
            "local",
            "my.localdomain",
            "arpa",
        ] {
            assert_eq!(taken_for(good), None, "{good}");
        }
        for bad in ["local", "arpa"] {
            assert!(network_taken_for(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn inet_aton_takes_what_libc_takes() {
        for (text, ip) in [
            ("10", "0.0.0.10"),
            ("0x10", "0.0.0.16"),
            ("010", "0.0.0.8"),
            ("127.1", "127.0.0.1"),
            ("1.2.3", "1.2.0.3"),
            ("1.2.3.4", "1.2.3.4"),
            ("4294967295", "255.255.255.255"),
        ] {
            assert_eq!(inet_aton(text), ip.parse().ok(), "{text}");
        }
        for bad in [
            "",
            ".",
            "1.",
            "a",
            "0x",
            "08",
            "256.1",
            "1.2.3.256",
            "1.2.3.4.5",
            "+1",
            "0x+1",
            "4294967296",
        ] {
            assert_eq!(inet_aton(bad), None, "{bad}");
        }
    }
}
