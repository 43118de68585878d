//! The plug-in of the Container Network Interface: reads a call of a container runtime, asks the
//! agent, and prints the answer. It starts no agent.

use std::{
    ffi::OsStr,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::client::{Client, segment};
use crate::{
    api::{Attachment, Driver, Endpoint, ErrorCode, Network},
    cni::{Action, CniError, Code, Config, Environment, Request, result, versions},
    config,
};

/// By which name this program is the plug-in.
const NAME: &str = "vxmesh-cni";
/// Where the agent listens, for who gives no flags.
const SOCKET: &str = "VXMESH_SOCKET";
/// Largest configuration: one with the results of all plug-ins before has some 10 KB, and GC names
/// each container of the host.
const STDIN_LEN: u64 = 16 * 1024 * 1024;

/// Whether the program was called as the plug-in.
pub(super) fn is_called(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new(NAME))
}

/// Carries a call out; the exit status is 1 if it fails. The answer is on stdout then, too.
pub(super) fn main(socket: Option<PathBuf>) -> u8 {
    let mut asked = None;
    let answered = read(&mut asked).and_then(|request| answer(&request, socket));
    let (status, answer) = match answered {
        Ok(answer) => (0, answer),
        Err(error) => (1, Some(error.json(asked.as_deref()))),
    };
    match answer.map_or(Ok(()), |answer| writeln!(io::stdout(), "{answer}")) {
        Ok(()) => status,
        Err(_reader_is_gone) => 1,
    }
}

/// The call, and the version in which it is made as soon as that is known.
fn read(asked: &mut Option<String>) -> Result<Request, CniError> {
    let env = Environment::read(|name| std::env::var(name).ok())?;
    let mut text = Vec::new();
    io::stdin().take(STDIN_LEN).read_to_end(&mut text).map_err(|why| {
        CniError::new(Code::Io, format!("stdin cannot be read: {why}"), "see the runtime's log")
    })?;
    let config = Config::read(&text)?;
    *asked = config.version().map(ToOwned::to_owned);
    Request::new(env, config)
}

fn answer(request: &Request, socket: Option<PathBuf>) -> Result<Option<Value>, CniError> {
    if request.action == Action::Version {
        return Ok(Some(versions(request.asked())));
    }
    let said = || std::env::var_os(SOCKET).map(PathBuf::from);
    let socket = match request.socket().or(socket).or_else(said) {
        Some(socket) => socket,
        None => config::socket(None)?,
    };
    super::wait(async { Ok(ask(&Client::new(socket), request).await) })
        .map_err(|failure| failure.error)?
}

/// Asks the agent.
async fn ask(client: &Client, request: &Request) -> Result<Option<Value>, CniError> {
    match &request.action {
        Action::Version => Ok(Some(versions(request.asked()))),
        Action::Status { network } => status(client, network).await,
        Action::Add(spec) => {
            let made: Attachment = client.post("/v1/attachments", spec).await?;
            result(request, &made).map(Some)
        }
        Action::Check(key) => {
            let found: Attachment =
                client.post("/v1/attachments/check", key).await.map_err(|error| {
                    let is_gone = error.code == ErrorCode::NotFound;
                    let error = CniError::from(error);
                    if is_gone { CniError { code: Code::Container, ..error } } else { error }
                })?;
            request.check(&found).map(|()| None)
        }
        Action::Del(key) => {
            let _removed: Vec<Endpoint> = client.post("/v1/attachments/remove", key).await?;
            Ok(None)
        }
        Action::Gc(kept) => {
            let _removed: Vec<Endpoint> = client.post("/v1/attachments/keep", kept).await?;
            Ok(None)
        }
    }
}

/// Without an agent frames cross to no other host; without the network nothing can be added.
async fn status(client: &Client, network: &str) -> Result<Option<Value>, CniError> {
    let found: Result<Network, _> = client.get(format!("/v1/networks/{}", segment(network))).await;
    if let Ok(network) = &found
        && (network.state != "active" || network.driver != Driver::Overlay.to_string())
    {
        let Network { name, driver, state, .. } = network;
        let what = format!("network `{name}` of driver {driver} is {state}");
        return Err(CniError::new(Code::Unavailable, what, "name an active one of driver overlay"));
    }
    found.map(|_| None).map_err(|error| {
        let is_away = error.code == ErrorCode::Unreachable;
        let is_missing = error.code == ErrorCode::NotFound;
        let mut error = CniError::from(error);
        error.code = if is_away { Code::Limited } else { Code::Unavailable };
        if is_missing {
            error.details = format!("make it with `vxmesh network create {network}`");
        }
        error
    })
}
