//! Owns what a host of a lab sees of the file system: the machine's, with four places of its own.
//!
//! `/var/lib`, `/etc/vxmesh` and `/run` (with it `/run/netns`) are directories of the lab, `/sys`
//! shows the host's own interfaces, `/proc` (mounted by the holder, from inside its PID namespace)
//! its own processes. Mounts that the machine makes or removes later come and go in the host too,
//! never the other way. What lay mounted below the private places is let go, so that no host keeps
//! alive a namespace or a container's disk that the machine removed.

use std::{
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::disk::HostDir;

const NONE: Option<&str> = None;

/// Gives the calling thread, which has a new mount namespace and the host's network namespace, the
/// host's view.
pub(super) fn make_private(host: &HostDir) -> io::Result<()> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)
        .map_err(what("make mounts private"))?;
    // Last comes /run, which hides the sources of the others.
    let places = [("/var/lib", host.data()), ("/etc/vxmesh", host.config()), ("/run", host.run())];
    for (place, source) in places {
        let_go_below(Path::new(place))?;
        mount(Some(&source), place, NONE, MsFlags::MS_BIND, NONE).map_err(what(place))?;
        mount(NONE, place, NONE, MsFlags::MS_PRIVATE, NONE).map_err(what(place))?;
    }
    mount_kernel_view("sysfs", "/sys")
}

/// Shows the processes of the calling process's PID namespace.
pub(super) fn mount_proc() -> io::Result<()> {
    mount_kernel_view("proc", "/proc")
}

fn mount_kernel_view(kind: &str, place: &str) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(kind), place, Some(kind), flags, NONE).map_err(what(place))
}

fn let_go_below(place: &Path) -> io::Result<()> {
    let table = fs::read("/proc/thread-self/mountinfo")?;
    let mut below: Vec<PathBuf> = mount_points(&table)
        .into_iter()
        .filter(|path| path != place && path.starts_with(place))
        .collect();
    // A later mount may lie on an earlier one.
    below.reverse();
    for path in below {
        match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Gone with the one it lay on, or hidden below another: out of the host's sight either
            // way.
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(what(&path.display().to_string())(error)),
        }
    }
    Ok(())
}

/// The fifth field of every line of mountinfo (proc(5)), with its octal escapes of blanks undone.
fn mount_points(table: &[u8]) -> Vec<PathBuf> {
    table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(|field| PathBuf::from(std::ffi::OsString::from_vec(unescape(field))))
        .collect()
}

fn unescape(mut field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    while let Some((&byte, rest)) = field.split_first() {
        field = rest;
        let code = (byte == b'\\').then(|| rest.get(..3)).flatten().and_then(octal);
        plain.push(code.unwrap_or(byte));
        if code.is_some() {
            field = rest.get(3..).unwrap_or_default();
        }
    }
    plain
}

fn octal(digits: &[u8]) -> Option<u8> {
    std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok())
}

fn what(place: &str) -> impl FnOnce(nix::errno::Errno) -> io::Error {
    move |errno| {
        let error = io::Error::from(errno);
        io::Error::new(error.kind(), format!("cannot mount for the host: {place}: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines() {
        let table = b"22 27 0:21 / /proc rw - proc proc rw\n23 27 0:22 / /run/a\\040b\\134c rw - tmpfs t rw\nshort line\n";
        assert_eq!(mount_points(table), [PathBuf::from("/proc"), PathBuf::from("/run/a b\\c")]);
    }

    #[test]
    fn escapes() {
        for (field, plain) in [
            ("", ""),
            ("a", "a"),
            ("\\040", " "),
            ("\\04", "\\04"),
            ("\\999", "\\999"),
            ("\\", "\\"),
        ] {
            assert_eq!(unescape(field.as_bytes()), plain.as_bytes(), "{field}");
        }
    }
}
