//! Signed claims: what a node says of itself, and how anyone checks that it said so.
