//! Owns the few rtnetlink requests and namespace pins that a lab's underlay needs.

use std::{
    fs::{self, File},
    io,
    net::IpAddr,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    thread,
};

use futures_util::TryStreamExt;
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use rtnetlink::packet_route::{
    link::{InfoData, InfoVeth, LinkAttribute},
    neighbour::NeighbourState,
};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};

use vxmesh_proto::addr::MacAddr;

use super::disk::NETNS_DIR;

const NONE: Option<&str> = None;

/// Makes a network namespace and pins it under a name.
pub(super) fn create_netns(name: &str) -> io::Result<File> {
    share_netns_dir()?;
    let path = path(name);
    File::options().write(true).create_new(true).open(&path)?;
    thread::scope(|scope| {
        let made = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &path, NONE, MsFlags::MS_BIND, NONE)?;
            Ok(())
        });
        joined(made)
    })?;
    File::open(path)
}

/// Takes the pin away; the namespace ends with its last process.
pub(super) fn remove_netns(name: &str) -> io::Result<()> {
    let path = path(name);
    match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // Only the file was made, or both are gone.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// As ip-netns(8) does it: pins must reach the mount namespaces of other programs.
fn share_netns_dir() -> io::Result<()> {
    let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
    fs::create_dir_all(NETNS_DIR)?;
    match mount(NONE, NETNS_DIR, NONE, shared, NONE) {
        Err(Errno::EINVAL) => {
            mount(Some(NETNS_DIR), NETNS_DIR, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
            mount(NONE, NETNS_DIR, NONE, shared, NONE)?;
            Ok(())
        }
        done => Ok(done?),
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

/// Runs work on a thread of its own inside a namespace.
fn inside<T: Send>(netns: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        joined(scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            work()
        }))
    })
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, io::Result<T>>) -> io::Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The interfaces of one network namespace.
#[derive(Debug)]
pub(super) struct Links {
    netns: File,
    handle: Handle,
}

impl Links {
    /// Those of a pinned namespace.
    pub(super) fn open(name: &str) -> io::Result<Self> {
        let netns = File::open(path(name))?;
        let runtime = tokio::runtime::Handle::current();
        let handle = inside(&netns, || {
            let _context = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection()?;
            runtime.spawn(connection);
            Ok(handle)
        })?;
        Ok(Self { netns, handle })
    }

    pub(super) async fn create_bridge(&self, name: &str, mtu: u16) -> io::Result<()> {
        let bridge = LinkBridge::new(name).mtu(mtu.into()).up().build();
        self.handle.link().add(bridge).execute().await.map_err(io::Error::other)
    }

    /// A cable from here into another namespace, where its end has this MAC address.
    pub(super) async fn create_veth(
        &self,
        name: &str,
        (peer, mac): (&str, MacAddr),
        peer_netns: &Self,
        mtu: u16,
    ) -> io::Result<()> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer)
            .address(mac.0.to_vec())
            .mtu(mtu.into())
            .setns_by_fd(peer_netns.netns.as_raw_fd())
            .build();
        let veth = LinkVeth::new(name, "")
            .mtu(mtu.into())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.handle.link().add(veth).execute().await.map_err(io::Error::other)
    }

    pub(super) async fn set_master(&self, name: &str, master: &str) -> io::Result<()> {
        let (name, master) = (self.index(name).await?, self.index(master).await?);
        let change = LinkUnspec::new_with_index(name).controller(master).build();
        self.handle.link().set(change).execute().await.map_err(io::Error::other)
    }

    pub(super) async fn set_up(&self, name: &str) -> io::Result<()> {
        let change = LinkUnspec::new_with_index(self.index(name).await?).up().build();
        self.handle.link().set(change).execute().await.map_err(io::Error::other)
    }

    pub(super) async fn delete(&self, name: &str) -> io::Result<()> {
        let index = self.index(name).await?;
        self.handle.link().del(index).execute().await.map_err(io::Error::other)
    }

    pub(super) async fn add_address(
        &self,
        name: &str,
        address: IpAddr,
        prefix: u8,
    ) -> io::Result<()> {
        let index = self.index(name).await?;
        self.handle.address().add(index, address, prefix).execute().await.map_err(io::Error::other)
    }

    /// Writes neighbours down: the kernel asks for none of them, and none counts against the limit
    /// of the machine's table.
    pub(super) async fn add_neighbours(
        &self,
        name: &str,
        neighbours: impl Iterator<Item = (IpAddr, MacAddr)>,
    ) -> io::Result<()> {
        let index = self.index(name).await?;
        for (ip, mac) in neighbours {
            let entry = self.handle.neighbours().add(index, ip).state(NeighbourState::Permanent);
            let entry = entry.link_layer_address(&mac.0).replace();
            entry.execute().await.map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Every interface's name with its index and its master's.
    pub(super) async fn list(&self) -> io::Result<Vec<(String, u32, Option<u32>)>> {
        let messages: Vec<_> =
            self.handle.link().get().execute().try_collect().await.map_err(io::Error::other)?;
        let row = |message: rtnetlink::packet_route::link::LinkMessage| {
            let mut name = None;
            let mut master = None;
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(text) => name = Some(text),
                    LinkAttribute::Controller(index) => master = Some(index),
                    _ => {}
                }
            }
            name.map(|name| (name, message.header.index, master))
        };
        Ok(messages.into_iter().filter_map(row).collect())
    }

    async fn index(&self, name: &str) -> io::Result<u32> {
        let links = self.list().await?;
        let found = links.into_iter().find(|(there, ..)| there == name).map(|(_, index, _)| index);
        found.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("there is no interface {name}"))
        })
    }

    /// Writes a kernel setting of this namespace (`/proc/sys/net` is the caller's namespace's).
    pub(super) fn sysctl(&self, path: &str, value: &str) -> io::Result<()> {
        inside(&self.netns, || fs::write(format!("/proc/sys/net/{path}"), value))
    }
}
