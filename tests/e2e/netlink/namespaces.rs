//! Namespaces as files: what is one, what is not, and that threads stay where they are.

use std::{fs, io, panic, path::Path};

use anyhow::Result;
use nix::{sys::stat::Mode, unistd::mkfifo};
use vxmesh::netlink::netns::{Netns, NetnsError};
use vxmesh_tests::topology::{Topology, interfaces};

#[test]
fn a_pin_is_made_once_and_removed_once() -> Result<()> {
    let topology = Topology::new()?;
    let path = topology.path().join("deep").join("one");
    let made = Netns::create(&path)?;
    assert!(!made.is(&Netns::current()?));
    assert!(made.is(&Netns::create(&path)?) && made.is(&Netns::open(&path)?));
    assert_eq!(topology.mounts()?, vec![path.clone()]);
    for _ in 0..2 {
        Netns::remove(&path)?;
        assert!(!path.exists());
    }
    assert!(topology.mounts()?.is_empty());
    assert!(matches!(Netns::open(&path), Err(NetnsError::Open { .. })));
    // The descriptor keeps it.
    assert_eq!(interfaces(&made)?, ["lo"]);
    Ok(())
}

#[test]
fn a_crash_between_file_and_mount_is_mended() -> Result<()> {
    let topology = Topology::new()?;
    let path = topology.path().join("half");
    fs::write(&path, "")?;
    let made = Netns::create(&path)?;
    assert!(made.is(&Netns::open(&path)?));
    Ok(())
}

#[test]
fn a_failed_pin_leaves_no_file() -> Result<()> {
    let topology = Topology::new()?;
    let directory = topology.path().join("directory");
    fs::create_dir(&directory)?;
    assert!(matches!(Netns::create(&directory), Err(NetnsError::Change { .. })));
    assert!(directory.is_dir());
    // No name may be as long as this one.
    let long = topology.path().join("x".repeat(256));
    assert!(Netns::create(&long).is_err());
    assert_eq!(fs::read_dir(topology.path())?.count(), 1);
    assert!(topology.mounts()?.is_empty());
    Ok(())
}

#[test]
fn only_a_network_namespace_is_one() -> Result<()> {
    let topology = Topology::new()?;
    let file = topology.path().join("file");
    fs::write(&file, "text")?;
    // Nobody ever writes into it: whoever waits for that hangs here.
    let fifo = topology.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRUSR)?;
    for path in [
        &file,
        &fifo,
        topology.path(),
        Path::new("/proc/self/ns/mnt"),
        Path::new("/proc/self/ns/uts"),
    ] {
        let opened = Netns::open(path);
        assert!(matches!(opened, Err(NetnsError::NotANamespace(_))), "{path:?}: {opened:?}");
    }
    Ok(())
}

#[test]
fn work_inside_leaves_the_caller_where_it_is() -> Result<()> {
    let topology = Topology::new()?;
    let netns = topology.sandbox("a")?.netns;
    let before = Netns::current()?;
    let within = netns.run(|| Netns::current().map_err(io::Error::other))?;
    assert!(within.is(&netns));
    let failed = netns.run(|| Err::<(), _>(io::Error::other("no luck")));
    assert_eq!(failed.unwrap_err().to_string(), "no luck");
    let panicked = panic::catch_unwind(|| netns.run(|| -> io::Result<()> { panic!("wanted") }));
    assert!(panicked.is_err());
    assert!(before.is(&Netns::current()?));
    assert!(netns.sysctl("no/such/setting", "1").is_err());
    Ok(())
}
