//! The host's own resolv.conf(5), as it changes; what it means is decided in `vxmesh_proto::dns`.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use vxmesh_proto::dns::ResolvConf;

/// The port of name servers.
const PORT: u16 = 53;
/// Name servers that are asked, as libc does (MAXNS of resolv.h).
pub const SERVERS: usize = 3;
/// How often the file is looked at while it is needed.
const LOOK: Duration = Duration::from_secs(1);
/// Longest file that is read.
const FILE_LEN: u64 = 64 * 1024;

/// A file that somebody else writes.
#[derive(Debug)]
pub(super) struct HostResolvers {
    path: PathBuf,
    read: Mutex<Option<Read>>,
}

#[derive(Debug)]
struct Read {
    looked: Instant,
    version: Option<Version>,
    conf: Arc<ResolvConf>,
}

/// Inode, length and time of the last change: another of these is another text.
type Version = (u64, u64, i64, i64);

impl HostResolvers {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path, read: Mutex::new(None) }
    }

    /// What it says now, or said a second ago.
    pub(super) fn current(&self, now: Instant) -> Arc<ResolvConf> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = read.as_ref().filter(|read| now.duration_since(read.looked) < LOOK) {
            return Arc::clone(&read.conf);
        }
        let version = self.version().ok();
        let conf = match read.take() {
            Some(before) if before.version == version => before.conf,
            Some(_) | None => Arc::new(parse(&self.text().unwrap_or_default())),
        };
        *read = Some(Read { looked: now, version, conf: Arc::clone(&conf) });
        conf
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

/// Where a name server with this address is asked.
pub(super) const fn server_at(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, PORT)
}

fn parse(text: &str) -> ResolvConf {
    let host = nix::unistd::gethostname().unwrap_or_default();
    let zone = |name: &str| nix::net::if_::if_nametoindex(name).ok();
    ResolvConf::parse(text, &host.to_string_lossy(), zone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let resolvers = HostResolvers::new(path.clone());
        let mut now = Instant::now();
        let mut after = |text: &str| {
            fs::write(&path, text).unwrap();
            now += LOOK;
            resolvers.current(now).servers.clone()
        };
        assert_eq!(after("nameserver 192.0.2.1"), ["192.0.2.1:53".parse().unwrap()]);
        assert_eq!(after("nameserver 192.0.2.22"), ["192.0.2.22:53".parse().unwrap()]);
        assert!(
            Arc::ptr_eq(&resolvers.current(now), &resolvers.current(now)),
            "in between it is not looked at"
        );
    }
}
