//! The unix socket of an API, there exactly while its agent lives.
//!
//! A socket that a dead agent left behind is replaced; one that answers is refused. It does not
//! guard against two agents that start in the same instant: the lock on the data directory does.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use axum::Router;
use tokio::net::{UnixListener, UnixStream};

use crate::api::{ApiError, ErrorCode};

/// How long calls in progress may go on after the agent was told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// What `sun_path` holds (unix(7)), less what the name under which the socket is made may be
/// longer.
const PATH_LEN: usize = 100;

/// A bound socket. Dropping it removes the file.
#[derive(Debug)]
pub struct ApiSocket {
    listener: Option<UnixListener>,
    path: PathBuf,
    inode: u64,
}

impl ApiSocket {
    /// Makes the socket with this mode, and its directory if need be.
    pub async fn bind(path: &Path, mode: u32) -> Result<Self, ApiError> {
        if path.as_os_str().len() > PATH_LEN {
            return Err(cannot(path, &io::Error::other("the path is too long")));
        }
        let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
        let directory = directory.unwrap_or_else(|| Path::new("."));
        fs::create_dir_all(directory).map_err(|why| cannot(path, &why))?;
        refuse_occupied(path).await?;

        // Under its final name the socket has its final mode from the first moment on.
        let private = tempfile::Builder::new().prefix(".s").rand_bytes(4).tempdir_in(directory);
        let private = private.map_err(|why| cannot(path, &why))?;
        let made = private.path().join("s");
        let listener = UnixListener::bind(&made).map_err(|why| cannot(path, &why))?;
        let inode = publish(&made, path, mode).map_err(|why| cannot(path, &why))?;
        Ok(Self { listener: Some(listener), path: path.into(), inode })
    }

    /// Serves until `stop` resolves; calls in progress get a few seconds to end. The file is gone
    /// afterwards.
    pub async fn serve(
        mut self,
        router: Router,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let Some(listener) = self.listener.take() else { return Ok(()) };
        let (stopped, mut told) = tokio::sync::watch::channel(false);
        let stop = async move {
            stop.await;
            stopped.send_replace(true);
        };
        let served = axum::serve(listener, router).with_graceful_shutdown(stop);
        let deadline = async {
            // An error means that the sender is gone, which is after it sent.
            drop(told.wait_for(|it| *it).await);
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            done = served => done,
            () = deadline => Ok(()),
        }
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|it| it.ino() == self.inode);
        if ours && let Err(why) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {why}", self.path.display());
        }
    }
}

/// Gives the finished socket its mode and its name; returns its inode.
fn publish(made: &Path, path: &Path, mode: u32) -> io::Result<u64> {
    fs::set_permissions(made, fs::Permissions::from_mode(mode))?;
    let inode = fs::symlink_metadata(made)?.ino();
    fs::rename(made, path)?;
    Ok(inode)
}

async fn refuse_occupied(path: &Path) -> Result<(), ApiError> {
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(why) if why.kind() == ErrorKind::NotFound => return Ok(()),
        Err(why) => return Err(cannot(path, &why)),
    };
    if !there.file_type().is_socket() {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("{} is there and is not a socket", path.display()),
            "remove it, or choose another --socket",
        ));
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(ApiError::new(
            ErrorCode::Conflict,
            format!("an agent answers on {} already", path.display()),
            "stop it, or choose another --socket and --data-dir",
        )),
        Err(why) if matches!(why.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {
            Ok(())
        }
        Err(why) => Err(cannot(path, &why)),
    }
}

fn cannot(path: &Path, why: &io::Error) -> ApiError {
    ApiError::new(
        ErrorCode::Failed,
        format!("cannot make the socket {}: {why}", path.display()),
        "run the agent as root, and give --socket a path of at most 100 characters",
    )
}
