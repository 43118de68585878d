//! The host's own name servers, as /etc/resolv.conf names them (resolv.conf(5)) and as it changes.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The port of name servers.
const PORT: u16 = 53;
/// Name servers that are asked, as libc does (MAXNS of resolv.h).
pub const SERVERS: usize = 3;
/// How often the file is looked at while it is needed.
const LOOK: Duration = Duration::from_secs(1);
/// Longest file that is read.
const FILE_LEN: u64 = 64 * 1024;

/// The name servers of a file that somebody else writes.
#[derive(Debug)]
pub(super) struct HostResolvers {
    path: PathBuf,
    read: Mutex<Option<Read>>,
}

#[derive(Debug)]
struct Read {
    looked: Instant,
    version: Option<Version>,
    servers: Arc<[SocketAddr]>,
}

/// Inode, length and time of the last change: another of these is another text.
type Version = (u64, u64, i64, i64);

impl HostResolvers {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path, read: Mutex::new(None) }
    }

    /// The name servers of now, or of a second ago.
    pub(super) fn current(&self, now: Instant) -> Arc<[SocketAddr]> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = read.as_ref().filter(|read| now.duration_since(read.looked) < LOOK) {
            return Arc::clone(&read.servers);
        }
        let version = self.version().ok();
        let servers = match read.take() {
            Some(before) if before.version == version => before.servers,
            Some(_) | None => servers(&self.text().unwrap_or_default()).into(),
        };
        *read = Some(Read { looked: now, version, servers: Arc::clone(&servers) });
        servers
    }

    fn version(&self) -> io::Result<Version> {
        let file = fs::metadata(&self.path)?;
        Ok((file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
    }

    fn text(&self) -> io::Result<String> {
        if fs::metadata(&self.path)?.len() > FILE_LEN {
            return Err(io::Error::other("too long"));
        }
        fs::read_to_string(&self.path)
    }
}

/// The name servers that a file names; the host itself where it names none, as libc has it.
fn servers(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        address(words.next()?)
    });
    let named: Vec<SocketAddr> = named.take(SERVERS).collect();
    if named.is_empty() { vec![(Ipv4Addr::LOCALHOST, PORT).into()] } else { named }
}

fn address(text: &str) -> Option<SocketAddr> {
    if let Some((ip, interface)) = text.split_once('%') {
        let index = nix::net::if_::if_nametoindex(interface).ok();
        let scope = index.or_else(|| interface.parse().ok())?;
        return Some(SocketAddrV6::new(ip.parse().ok()?, PORT, 0, scope).into());
    }
    Some(server_at(text.parse().ok()?))
}

/// Where a name server with this address is asked.
pub(super) const fn server_at(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_those_that_libc_asks() {
        let text = "# nameserver 9.9.9.9\nsearch a.b\nnameserver 192.0.2.1\n nameserver\tfd00::1 # x\n\
            nameserver nonsense\nnameserver 192.0.2.2\nnameserver 192.0.2.3\noptions edns0";
        let wanted = ["192.0.2.1:53", "[fd00::1]:53", "192.0.2.2:53"];
        assert_eq!(servers(text), wanted.map(|text| text.parse().unwrap()));
        assert_eq!(servers(""), ["127.0.0.1:53".parse().unwrap()]);
        let scoped = servers("nameserver fe80::1%lo");
        assert!(matches!(scoped[..], [SocketAddr::V6(v6)] if v6.scope_id() == 1), "{scoped:?}");
    }

    #[test]
    fn a_changed_file_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let resolvers = HostResolvers::new(path.clone());
        let mut now = Instant::now();
        let mut after = |text: &str| {
            fs::write(&path, text).unwrap();
            now += LOOK;
            resolvers.current(now).to_vec()
        };
        assert_eq!(after("nameserver 192.0.2.1"), ["192.0.2.1:53".parse().unwrap()]);
        assert_eq!(after("nameserver 192.0.2.22"), ["192.0.2.22:53".parse().unwrap()]);
        assert_eq!(
            resolvers.current(now),
            resolvers.current(now),
            "in between it is not looked at"
        );
    }
}
