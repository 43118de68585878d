//! Starting programs: the one under test and those of the system.

use std::{
    env,
    ffi::OsStr,
    path::PathBuf,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};

/// The program under test: `cargo test` puts the tests two directories below it.
///
/// # Errors
///
/// It was not built.
pub fn vxmesh() -> Result<PathBuf> {
    let own = env::current_exe()?;
    let path = own.ancestors().nth(2).context("no target directory")?.join("vxmesh");
    ensure!(path.is_file(), "{} is missing: run `cargo build -p vxmesh` first", path.display());
    Ok(path)
}

/// Any program.
#[expect(clippy::disallowed_methods, reason = "tests start programs")]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    Command::new(program)
}

/// What a program printed, if it succeeded.
///
/// # Errors
///
/// It failed; the error shows what it said.
pub fn printed(what: &str, output: Output) -> Result<String> {
    ensure!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}
