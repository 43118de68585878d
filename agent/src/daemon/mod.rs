//! The running agent: builds everything, holds it together, stops it in order.
//!
//! Start: state, identity (made or joined at the first start, if so configured), mesh, admin
//! socket. Without an identity the agent serves its socket and waits for `init` or `join`. SIGTERM
//! and SIGINT stop it: the admin socket first, then control; namespaces, cables and addresses stay
//! for the next start.

mod absent;
mod adopt;
mod attach;
mod attachments;
mod backend;
mod clocks;
mod conflicts;
mod connections;
mod cut;
mod departed;
mod descriptions;
mod disk;
mod doctor;
mod ended;
mod endpoint_ports;
mod endpoints;
mod engines;
mod gateway;
mod guards;
mod hosting;
mod ingress;
mod ipam;
mod issuers;
mod keepers;
mod leases;
mod leftovers;
mod limits;
mod local;
mod macvlan;
mod mend;
mod mesh;
mod modes;
mod name_records;
mod names;
mod networks;
mod obstacles;
mod place;
mod plain;
mod probe;
mod publish;
mod reconcile;
mod removal;
mod rollback;
mod rounds;
mod rows;
mod rules;
mod sandboxes;
mod settling;
mod standstill;
mod subnets;
mod succession;
mod supervisors;
mod sync;
mod told;
mod unname;
mod vanished;
mod views;
mod watch;
mod world;

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use futures_util::FutureExt;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, info, warn};

use self::backend::Agent;
pub(crate) use self::mesh::Mesh;
pub use self::{absent::LastKnown, doctor::without_agent as diagnose_host};
use crate::{
    admin::{ApiSocket, router},
    api::{ApiError, ErrorCode},
    config::{Config, FirstStart},
    docker::{self, PLUGIN_SOCKET},
    identity::Credentials,
};

/// How long an agent without an identity waits between two attempts to join.
const REJOIN: Duration = Duration::from_secs(2);

/// Lets the agent have as many file descriptors as it may: each network takes some twenty, and
/// the usual limit is for programs that use select(2).
fn raise_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        debug!(%error, "the limit of file descriptors stays");
    }
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// It cannot start; nothing is left running.
pub async fn run(config: Config) -> Result<(), ApiError> {
    raise_descriptors();
    make_private(&config.data_dir)?;
    fs::create_dir_all(&config.run_dir).map_err(|error| cannot_make(&config.run_dir, &error))?;
    let socket = ApiSocket::bind(&config.socket, 0o660).await?;
    let agent = Arc::new(Agent::new(config.clone()));
    let stopped = stop_signal()?.shared();
    // Calls wait until the mesh is there: Docker forgets what is refused.
    let docker = docker_socket(&config).await?;
    match Credentials::load(&config.data_dir).map_err(ApiError::from)? {
        Some(credentials) => agent.become_member(credentials).await?,
        None => first_start(&agent, &config).await?,
    }
    let docker = docker
        .map(|socket| tokio::spawn(serve_docker(socket, Arc::clone(&agent), stopped.clone())));
    info!(socket = %config.socket.display(), "serving");
    let result = socket.serve(router(Arc::clone(&agent) as _), stopped).await;
    info!("stopping");
    if let Some(docker) = docker {
        drop(docker.await);
    }
    agent.stop().await;
    result.map_err(|error| {
        ApiError::new(
            ErrorCode::Failed,
            format!("the admin socket failed: {error}"),
            "restart the agent",
        )
    })
}

/// The socket of the driver of this host's Docker engine, if the agent shall be one.
async fn docker_socket(config: &Config) -> Result<Option<ApiSocket>, ApiError> {
    if !config.docker {
        return Ok(None);
    }
    ApiSocket::bind(Path::new(PLUGIN_SOCKET), 0o600).await.map(Some)
}

/// Is the driver of this host's Docker engine until it is told to stop.
async fn serve_docker(
    socket: ApiSocket,
    agent: Arc<Agent>,
    stopped: impl Future<Output = ()> + Clone + Send + 'static,
) {
    info!(socket = PLUGIN_SOCKET, "serving Docker");
    let (engine, at_start) = (Arc::clone(&agent), docker::Kept::now(&*agent).await);
    let reconciled = async move {
        let reconciled = docker::reconcile(&*engine, at_start);
        tokio::join!(reconciled, docker::follow(&*engine), docker::offer_networks(&*engine))
    };
    let served = socket.serve(docker::router(agent as _), stopped.clone());
    let (served, ()) = tokio::join!(served, async {
        tokio::select! { _ = reconciled => {}, () = stopped => {} }
    });
    if let Err(error) = served {
        warn!(%error, "the socket for Docker failed; restart the agent");
    }
}

/// Makes a mesh or joins one, if the agent was told to.
async fn first_start(agent: &Arc<Agent>, config: &Config) -> Result<(), ApiError> {
    match &config.first_start {
        FirstStart::Wait => {
            info!("this node belongs to no mesh; run `vxmesh init` or `vxmesh join`");
            Ok(())
        }
        FirstStart::Init { token_file } => {
            agent.make_mesh().await?;
            match token_file {
                Some(file) => agent.write_token(file),
                None => Ok(()),
            }
        }
        FirstStart::Join { servers, token_file } => {
            // In the background: the file and the server may come later, and the socket says
            // meanwhile how it stands.
            let (agent, servers, token_file) =
                (Arc::clone(agent), servers.clone(), token_file.clone());
            tokio::spawn(async move {
                loop {
                    match agent.join_from_file(&servers, &token_file).await {
                        Ok(()) => return,
                        Err(error) if error.code == ErrorCode::Conflict => {
                            return warn!(%error, "not joining");
                        }
                        Err(error) => warn!(%error, "not joined yet; trying again"),
                    }
                    tokio::time::sleep(REJOIN).await;
                }
            });
            Ok(())
        }
    }
}

fn make_private(dir: &Path) -> Result<(), ApiError> {
    let made = !dir.exists();
    fs::create_dir_all(dir).map_err(|error| cannot_make(dir, &error))?;
    if made {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
            .map_err(|error| cannot_make(dir, &error))?;
    }
    Ok(())
}

fn cannot_make(dir: &Path, error: &std::io::Error) -> ApiError {
    let message = format!("cannot use the directory {}: {error}", dir.display());
    ApiError::new(ErrorCode::Failed, message, "run the agent as root, or choose another directory")
}

/// Ends when SIGTERM or SIGINT comes.
fn stop_signal() -> Result<impl Future<Output = ()> + Send + 'static, ApiError> {
    let cannot = |error| {
        ApiError::new(ErrorCode::Failed, format!("cannot wait for signals: {error}"), "try again")
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
