//! `init` and `join`: by the agent if one runs, else in its data directory.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use vxmesh_proto::limits::CONTROL_PORT;

use super::{
    Outcome,
    args::{DataDir, Global, Join},
    output::Output,
};
use crate::{
    api::{ApiError, ErrorCode, InitSpec, JoinSpec, Membership, Status},
    config::{Config, RawConfig},
    control::join::{self, JoinOptions},
    identity::{Credentials, token::TokenParseError, unix_now},
    netlink,
};

/// Several servers with several addresses each may have to be tried.
const JOIN: Duration = Duration::from_secs(300);
/// A token has about a hundred characters.
const TOKEN_LEN: u64 = 4096;

/// `init`
pub(super) async fn init(global: &Global, output: Output, data: DataDir) -> Outcome {
    let client = super::client(global)?;
    let (membership, servers) = if client.finds_agent().await? {
        let made = client.post("/v1/init", &InitSpec {}).await?;
        let status: Status = client.get("/v1/status").await?;
        (made, status.control_addr.into_iter().collect::<Vec<_>>())
    } else {
        let config = config(global, data)?;
        let made = Credentials::init(&config.data_dir, unix_now());
        let ips = match config.advertise.is_empty() {
            true => netlink::host_addresses(),
            false => config.advertise,
        };
        let servers = ips.into_iter().map(|ip| SocketAddr::new(ip, config.control_port));
        (membership(&made.map_err(ApiError::from)?), servers.collect())
    };
    output.done(&membership, &format!("made mesh {}", membership.mesh_id))?;
    output.note(&format!(
        "for each other host, `vxmesh token create --uses 1` here prints a token; then {}",
        on_the_next_host("TOKEN", &servers)
    ));
    Ok(0)
}

/// The line that makes the next host a member.
pub(super) fn on_the_next_host(token: &str, servers: &[SocketAddr]) -> String {
    let server = |addr: &SocketAddr| match addr.port() {
        CONTROL_PORT => addr.ip().to_string(),
        _ => addr.to_string(),
    };
    let servers: Vec<String> = servers.iter().map(server).collect();
    let servers = if servers.is_empty() { "ADDRESS".to_owned() } else { servers.join(" ") };
    format!("on the next host: vxmesh join --token {token} {servers}")
}

/// `join`
pub(super) async fn join(global: &Global, output: Output, join: Join) -> Outcome {
    let token = match (join.token, join.token_file) {
        (Some(token), _) => token,
        (None, Some(file)) => read_token(&file)?,
        (None, None) => return meet(global, output, join.servers).await,
    };
    let client = super::client(global)?;
    output.note(&format!("asking {} to let this node in", join.servers.join(", ")));
    let membership = if client.finds_agent().await? {
        let spec = JoinSpec { token: Some(token), servers: join.servers };
        client.with_patience(JOIN).post("/v1/join", &spec).await?
    } else {
        let config = config(global, join.data)?;
        let options = JoinOptions {
            token: token.parse().map_err(|why: TokenParseError| ApiError::from(why))?,
            servers: join.servers,
            name: config.name,
            control_port: config.control_port,
            advertise: config.advertise.first().copied(),
        };
        let made = join::join(&config.data_dir, &options).await.map_err(ApiError::from)?;
        Membership { warnings: made.warnings, ..membership(&made.credentials) }
    };
    membership.warnings.iter().for_each(|warning| output.warn(warning));
    output.done(&membership, &format!("joined mesh {}", membership.mesh_id))?;
    Ok(0)
}

/// `join` without a token: a member looks for its mesh at other addresses than it knows.
async fn meet(global: &Global, output: Output, servers: Vec<String>) -> Outcome {
    let client = super::client(global)?;
    if !client.finds_agent().await? {
        return Err(ApiError::new(
            ErrorCode::Usage,
            "no token is given, and no agent runs here that could be a member already",
            "give --token or --token-file; `vxmesh token create` on a member makes one",
        )
        .into());
    }
    let spec = JoinSpec { token: None, servers };
    let membership: Membership = client.with_patience(JOIN).post("/v1/join", &spec).await?;
    output.done(&membership, &format!("found mesh {}", membership.mesh_id))?;
    Ok(0)
}

/// Reads a join token from a file.
fn read_token(file: &Path) -> Result<String, ApiError> {
    let read = || {
        if fs::metadata(file)?.len() > TOKEN_LEN {
            return Err(std::io::Error::other("it is too long for a token"));
        }
        fs::read_to_string(file)
    };
    let text = read().map_err(|why| {
        ApiError::new(
            ErrorCode::Usage,
            format!("cannot read the token from {}: {why}", file.display()),
            "name the file that holds what `vxmesh token create` printed",
        )
    })?;
    Ok(text.trim().to_owned())
}

pub(super) fn config(global: &Global, data: DataDir) -> Result<Config, ApiError> {
    let flags = RawConfig { data_dir: data.data_dir, ..RawConfig::default() };
    Config::load(global.config.as_deref(), flags)
}

fn membership(credentials: &Credentials) -> Membership {
    Membership {
        mesh_id: credentials.membership.mesh_id,
        node_id: credentials.identity.node_id(),
        warnings: Vec::new(),
    }
}
