//! The plug-in of the Container Network Interface (CNI, <https://www.cni.dev/docs/spec/>): what a
//! container runtime wants of this host's agent, and what it is answered.
//!
//! ```text
//! runtime : CNI_* in the environment, the network configuration on stdin
//! Request : what is asked           -> one call of the admin API
//! answer  : what the agent answered -> JSON on stdout in the version of the configuration
//! ```
//!
//! All of it is decided here and nothing is done: the command line reads, calls and prints. The
//! configuration is read strictly where something is to be made of it, and as far as it is needed
//! where something is to be removed: what cannot be read must not keep a container from ending.

mod args;
mod config;
mod error;
mod request;
mod result;
#[cfg(test)]
mod tests;
mod version;
mod wish;

pub(crate) use self::{
    args::Environment,
    config::Config,
    error::{CniError, Code},
    request::{Action, Request},
    result::result,
    version::versions,
};
