//! A native XDP program at an interface, which lets everything pass. No loader is needed for two
//! instructions.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use nix::{libc, net::if_::if_nametoindex};

use crate::netns::NetNs;

/// linux/bpf.h
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_TYPE_XDP: u32 = 37;
/// linux/if_link.h: by the driver, before there is a packet of the kernel's.
const DRIVER_MODE: u32 = 1 << 2;
/// `r0 = XDP_PASS`, `exit` (RFC 9669).
const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
const LICENSE: &[u8] = b"MIT\0";

#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    steps: u64,
    license: u64,
}

#[repr(C)]
struct Create {
    program: u32,
    interface: u32,
    kind: u32,
    flags: u32,
}

/// Attaches it in a namespace; it goes with what is returned.
///
/// # Errors
///
/// The kernel refuses it.
pub fn attach(netns: &NetNs, interface: &str) -> Result<OwnedFd> {
    netns.run(|| {
        let load = Load {
            kind: PROG_TYPE_XDP,
            count: 2,
            steps: PASS.as_ptr() as u64,
            license: LICENSE.as_ptr() as u64,
        };
        let program = bpf(PROG_LOAD, &load).context("load the program")?;
        let create = Create {
            program: u32::try_from(program.as_raw_fd())?,
            interface: if_nametoindex(interface)?,
            kind: ATTACH_TYPE_XDP,
            flags: DRIVER_MODE,
        };
        bpf(LINK_CREATE, &create).context("attach the program")
    })
}

fn bpf<T>(command: libc::c_int, request: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads so many bytes of the request, and what it points to is static.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(request), size_of::<T>())
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the call gave it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
