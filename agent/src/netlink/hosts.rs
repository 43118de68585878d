//! Where this host's own routes lead, from the kernel's tables in /proc/net. Only to tell people of
//! overlaps.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::gateway::uplink::is_uplink;

/// A route of this host that is no default route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoute {
    /// Where it leads.
    pub destination: IpNet,
    /// By which interface.
    pub interface: String,
}

/// The routes of this host, but for those to everywhere, to itself, to a link and to groups.
#[must_use]
pub fn routes() -> Vec<HostRoute> {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let v4 = read("/proc/net/route");
    let v6 = read("/proc/net/ipv6_route");
    let mut routes: Vec<HostRoute> =
        v4.lines().filter_map(route_v4).chain(v6.lines().filter_map(route_v6)).collect();
    routes.dedup();
    routes
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask ...`, addresses as numbers of this
/// machine's byte order.
fn route_v4(line: &str) -> Option<HostRoute> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| {
        let number = u32::from_str_radix(fields.get(at)?, 16).ok()?;
        Some(Ipv4Addr::from(number.to_ne_bytes()))
    };
    let destination = IpNet::with_netmask(number(1)?.into(), number(7)?.into()).ok()?;
    kept(destination, fields.first()?)
}

/// `destination length source length next-hop metric refs use flags interface`, addresses as 32
/// digits.
fn route_v6(line: &str) -> Option<HostRoute> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let address = u128::from_str_radix(fields.first()?, 16).ok().map(Ipv6Addr::from)?;
    let length = u8::from_str_radix(fields.get(1)?, 16).ok()?;
    kept(IpNet::new(address.into(), length).ok()?, fields.last()?)
}

/// Whether a route leads where nothing else leads, whole or in parts: a VPN lays `0.0.0.0/1` and
/// `128.0.0.0/1`, or a few more, beside the default route that it finds. Whatever has a route of
/// its own goes there.
#[must_use]
pub fn leads_everywhere(destination: &IpNet) -> bool {
    // No network is that large: the smallest parts are larger than any private block (10.0.0.0/8,
    // fc00::/7).
    let private = if destination.addr().is_ipv4() { 8 } else { 7 };
    destination.prefix_len() < private
}

fn kept(destination: IpNet, interface: &str) -> Option<HostRoute> {
    let local = match destination.addr() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_multicast(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast(),
    };
    // Host routes of IPv6 to the host's own addresses are those of `lo`, and uplinks lead into
    // networks themselves.
    let kept =
        !leads_everywhere(&destination) && !local && interface != "lo" && !is_uplink(interface);
    kept.then(|| HostRoute { destination, interface: interface.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_v4(destination: [u8; 4], mask: [u8; 4]) -> String {
        let hex = |bytes| format!("{:08X}", u32::from_ne_bytes(bytes));
        format!("eth0\t{}\t00000000\t0001\t0\t0\t0\t{}\t0\t0\t0", hex(destination), hex(mask))
    }

    #[test]
    fn routes_of_both_versions_are_read() {
        let read = route_v4(&line_v4([10, 213, 0, 0], [255, 255, 255, 0])).unwrap();
        let expected = "10.213.0.0/24".parse().unwrap();
        assert_eq!(read, HostRoute { destination: expected, interface: "eth0".into() });
        assert_eq!(route_v4(&line_v4([0; 4], [0; 4])), None, "the default route is everywhere");
        for part in [[0; 4], [128, 0, 0, 0]] {
            assert_eq!(route_v4(&line_v4(part, [128, 0, 0, 0])), None, "half of everywhere");
        }
        assert_eq!(route_v4("Iface\tDestination\tGateway"), None);
        assert_eq!(route_v4(""), None);
        let line = |to: &str, length: &str, by: &str| {
            format!("{to} {length} {:032} 00 {:032} 00000100 00000001 00000000 00000001 {by}", 0, 0)
        };
        let read = route_v6(&line("fd130000000000000000000000000000", "40", "eth0")).unwrap();
        assert_eq!(read.destination, "fd13::/64".parse().unwrap());
        for (to, length, by) in [
            ("00000000000000000000000000000000", "00", "eth0"),
            ("20000000000000000000000000000000", "03", "tun0"),
            ("fe800000000000000000000000000000", "40", "eth0"),
            ("fd130000000000000000000000000001", "80", "lo"),
            ("ff000000000000000000000000000000", "08", "eth0"),
        ] {
            assert_eq!(route_v6(&line(to, length, by)), None, "{to}");
        }
        assert_eq!(route_v6("nonsense"), None);
    }
}
