//! The single writer of tables (I2): from claims and local endpoints to one snapshot per network.

pub mod addresses;
pub mod admit;
pub mod tables;
