//! Owns the end of a lab: everything that has its name goes, in whatever state it is found.
//!
//! Processes first (the holders on record, then whatever else is in the lab's network namespaces),
//! then namespaces, and with them every interface, address and nft table, then files. Each step
//! takes what it finds and nothing for granted, so it also ends what a killed `up` or `down` left.
//! Refuses to run inside the lab itself.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::try_join_all;

use super::{
    disk::{HostDir, LabDir, NETNS_DIR, pinned_netns},
    error::OrFail,
    name::LabName,
    process::Process,
    wire,
};
use crate::api::{ApiError, ErrorCode};

/// All die at once, and the kernel takes their interfaces down one after the other meanwhile.
const KILL_DEADLINE: Duration = Duration::from_secs(60);

/// Removes a lab; tells whether there was one.
pub(super) async fn down(name: &LabName) -> Result<bool, ApiError> {
    let lab = LabDir::find(name);
    let namespaces = pinned_netns(name).or_fail(|| format!("cannot read {NETNS_DIR}"))?;
    if lab.is_none() && namespaces.is_empty() {
        return Ok(false);
    }
    let _lock = lab.as_ref().map(LabDir::lock).transpose()?;
    remove(name, lab).await?;
    Ok(true)
}

/// Removes what there is of a lab that the caller has locked.
pub(super) async fn remove(name: &LabName, lab: Option<LabDir>) -> Result<(), ApiError> {
    let namespaces = pinned_netns(name).or_fail(|| format!("cannot read {NETNS_DIR}"))?;
    let paths: Vec<PathBuf> =
        namespaces.iter().map(|netns| Path::new(NETNS_DIR).join(netns)).collect();
    let identities: HashSet<_> = paths.iter().filter_map(|path| identity(path).ok()).collect();
    refuse_inside(name, &identities)?;
    let hosts = lab.as_ref().map_or(Ok(Vec::new()), LabDir::host_dirs)?;
    try_join_all(hosts.iter().map(end_host)).await.or_fail(|| format!("cannot end lab {name}"))?;
    // A process can start another while it is looked for.
    loop {
        let left = processes_in(&identities).or_fail(|| "cannot read /proc".to_owned())?;
        if left.is_empty() {
            break;
        }
        let ends = left.into_iter().map(|process| process.kill(KILL_DEADLINE));
        try_join_all(ends).await.or_fail(|| format!("cannot end lab {name}"))?;
    }
    for netns in &namespaces {
        wire::remove_netns(netns)?;
    }
    lab.map_or(Ok(()), LabDir::remove)
}

/// Ends the agent of a host and then its first process: a zombie child of this very process would
/// keep that one from ending. A record that a sudden end left unreadable tells nothing that a look
/// at the namespaces does not find.
async fn end_host(host: &HostDir) -> io::Result<()> {
    for record in [host.agent(), host.holder()] {
        if let Ok(Some(process)) = record {
            process.kill(KILL_DEADLINE).await?;
        }
    }
    Ok(())
}

/// Device and inode: what makes two paths the same namespace (namespaces(7)).
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::metadata(path)?;
    Ok((file.dev(), file.ino()))
}

fn refuse_inside(name: &LabName, identities: &HashSet<(u64, u64)>) -> Result<(), ApiError> {
    let here =
        identity(Path::new("/proc/self/ns/net")).or_fail(|| "cannot read /proc".to_owned())?;
    if identities.contains(&here) {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("this command runs inside lab {name}"),
            "leave the host first and run it on the machine",
        ));
    }
    Ok(())
}

fn processes_in(identities: &HashSet<(u64, u64)>) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Processes end while we look.
        let Ok(process) = Process::of(pid) else { continue };
        let inside = identity(&PathBuf::from(format!("/proc/{pid}/ns/net")))
            .is_ok_and(|id| identities.contains(&id));
        if inside && process.is_alive() {
            found.push(process);
        }
    }
    Ok(found)
}
