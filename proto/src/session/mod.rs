//! Noise between two nodes.
