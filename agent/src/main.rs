//! The vxmesh binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    vxmesh::cli::main(std::env::args_os().collect())
}
