//! The vxmesh binary.
fn main() {}
