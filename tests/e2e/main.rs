//! Tests of the real binary and the real kernel; they need root.

mod addresses;
mod beside;
mod churn;
mod connect;
mod demo;
mod egress;
mod lab;
mod mesh;
mod names;
mod netlink;
mod publish;
mod refusals;
mod skeleton;
mod streams;
mod traces;
