//! The data path's shell: sockets, TAPs and the threads between them.

pub mod drops;
pub mod udp;
