//! Owns the end of a lab: everything that has its name goes, in whatever state it is found.
//!
//! Processes first (the holders on record, then whatever else is in the lab's network namespaces), then namespaces, and
//! with them every interface, address and nft table, then files. Each step takes what it finds and nothing for granted, so
//! it also ends what a killed `up` or `down` left. Refuses to run inside the lab itself.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    disk::{LabDir, NETNS_DIR, pinned_netns},
    error::OrFail,
    name::LabName,
    process::Process,
    wire,
};
use crate::api::{ApiError, ErrorCode};

const KILL_DEADLINE: Duration = Duration::from_secs(10);

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
    for host in lab.iter().map(LabDir::host_dirs).collect::<Result<Vec<_>, _>>()?.iter().flatten() {
        // The agent first: a zombie child of this very process would keep the holder from ending. A record that a sudden
        // end left unreadable tells nothing that the search below does not find.
        for record in [host.agent(), host.holder()] {
            if let Ok(Some(process)) = record {
                process.kill(KILL_DEADLINE).await.or_fail(|| format!("cannot end lab {name}"))?;
            }
        }
    }
    // A process can start another while it is looked for.
    loop {
        let left = processes_in(&identities).or_fail(|| "cannot read /proc".to_owned())?;
        if left.is_empty() {
            break;
        }
        for process in left {
            process.kill(KILL_DEADLINE).await.or_fail(|| format!("cannot end lab {name}"))?;
        }
    }
    for netns in &namespaces {
        wire::remove_netns(netns)?;
    }
    lab.map_or(Ok(()), LabDir::remove)
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
