//! What the tests of several kinds share.

pub mod cable;
pub mod caller;
pub mod capture;
pub mod dns;
pub mod engine;
pub mod flow;
pub mod fuzz;
pub mod hex;
pub mod lab;
pub mod machine;
pub mod netns;
pub mod outside;
pub mod pair;
pub mod plain;
pub mod program;
pub mod runtime;
pub mod stream;
pub mod topology;
pub mod traffic;
pub mod uevent;
pub mod untrusted;
pub mod upstream;
pub mod xdp;
