//! Tests of the real binary and the real kernel; they need root.

mod addresses;
mod churn;
mod demo;
mod lab;
mod mesh;
mod netlink;
mod refusals;
