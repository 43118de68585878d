//! What a mesh does for the sandboxes on its hosts, and what it refuses to others.

mod clear;
mod counters;
mod forged;
mod interrupt;
mod offload;
mod place;
mod reach;
mod speed;
mod spoofed;
