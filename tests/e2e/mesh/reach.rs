//! Every endpoint reaches every other.

use anyhow::Result;
use vxmesh_tests::lab::{Allowed, Lab, Options};

#[test]
fn first() -> Result<()> {
    let lab = Lab::captured(Options::default())?;
    lab.network("h1", "blue")?;
    let a = lab.sandbox("h1", "blue", "a")?;
    let b = lab.sandbox("h2", "blue", "b")?;
    lab.all_know(&[&a.endpoint, &b.endpoint])?;
    lab.finish(Allowed::default())
}
