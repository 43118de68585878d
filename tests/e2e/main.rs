//! Tests of the real binary and the real kernel; they need root.

mod addresses;
mod beside;
mod churn;
mod closed;
mod cni;
mod connect;
mod demo;
mod docker;
mod drivers;
mod egress;
mod isolation;
mod lab;
mod membership;
mod mesh;
mod names;
mod netlink;
mod plain;
mod publish;
mod refusals;
mod removal;
mod scenarios;
mod services;
mod skeleton;
mod streams;
mod traces;
