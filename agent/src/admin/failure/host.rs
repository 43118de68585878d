//! How failures of this host look to a user: interfaces, namespaces, processes, engines.

use crate::{
    api::{ApiError, ErrorCode},
    docker::DockerError,
    host::names::NamesError,
    netlink::{macvlan::MacvlanError, netns::NetnsError, overlay::OverlayError},
    sandbox::process::ProcessError,
};

impl From<OverlayError> for ApiError {
    fn from(error: OverlayError) -> Self {
        let (code, hint) = match &error {
            OverlayError::Netns(NetnsError::Open { .. }) => (
                ErrorCode::NotFound,
                "`ip netns` lists the named ones; of a process it is /proc/PID/ns/net, while the process runs",
            ),
            OverlayError::Ifname(_) => (ErrorCode::Usage, "nothing was changed"),
            OverlayError::Netns(NetnsError::NotANamespace(_)) | OverlayError::NotASandbox(_) => {
                (ErrorCode::Usage, "give a sandbox's namespace with --netns or --pid")
            }
            OverlayError::Taken(_) | OverlayError::NoName => {
                (ErrorCode::Conflict, "nothing was changed")
            }
            OverlayError::Netns(NetnsError::Change { .. })
            | OverlayError::Link(_)
            | OverlayError::Io(_)
            | OverlayError::Tap(_) => {
                (ErrorCode::Failed, "the agent needs root and /dev/net/tun; nothing was changed")
            }
        };
        Self::new(code, error.to_string(), hint)
    }
}

impl From<MacvlanError> for ApiError {
    fn from(error: MacvlanError) -> Self {
        let (code, hint) = match &error {
            MacvlanError::Missing(_) => {
                (ErrorCode::NotFound, "`ip link` lists those that are there")
            }
            MacvlanError::Down(_) => (ErrorCode::Failed, "bring it up with `ip link set IF up`"),
            MacvlanError::Vlan(_) => (ErrorCode::Failed, "nothing was changed"),
            MacvlanError::Other(_) => return from_other(error),
        };
        Self::new(code, error.to_string(), hint)
    }
}

fn from_other(error: MacvlanError) -> ApiError {
    match error {
        MacvlanError::Other(error) => error.into(),
        other => ApiError::new(ErrorCode::Failed, other.to_string(), "nothing was changed"),
    }
}

impl From<DockerError> for ApiError {
    fn from(error: DockerError) -> Self {
        let (code, hint) = match &error {
            DockerError::Absent(_) => (ErrorCode::Failed, "is Docker installed here and running?"),
            DockerError::NoContainer(_) => (ErrorCode::NotFound, "see `docker ps`"),
            DockerError::NotRunning(_) => (ErrorCode::Conflict, "start it with `docker start`"),
            DockerError::Engine(_) => (ErrorCode::Failed, "see the engine's log"),
        };
        Self::new(code, error.to_string(), hint)
    }
}

impl From<NamesError> for ApiError {
    fn from(error: NamesError) -> Self {
        match error {
            NamesError::Netns(error) => OverlayError::from(error).into(),
            NamesError::Io(error) => {
                let message = format!("names cannot be served: {error}");
                Self::new(ErrorCode::Failed, message, "try again")
            }
        }
    }
}

impl From<ProcessError> for ApiError {
    fn from(error: ProcessError) -> Self {
        let hint = match &error {
            ProcessError::Signal { .. } => "end it yourself",
            ProcessError::Stays(_) => "see what it waits for with `ps`",
        };
        Self::new(ErrorCode::Failed, error.to_string(), hint)
    }
}
