//! Plain networks: RFC 7348 with the kernel's own vxlan device, and what is refused.

mod bursts;
mod interop;
mod losses;
mod port;
mod refusals;
mod world;
