//! The shell around `vxmesh-proto` and `vxmesh-gossip`: the only crate with sockets, files and root
//! rights.
#![deny(unsafe_code)]

pub mod admin;
pub mod api;
pub mod cli;
mod cni;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod dns;
pub mod docker;
pub mod firewall;
pub mod gateway;
mod host;
pub mod identity;
pub mod lab;
mod lock;
mod member;
pub mod netlink;
pub mod objects;
pub mod reconcile;
pub mod records;
mod sandbox;
pub mod services;
pub mod store;
