//! Two and three nodes in virtual time, over a link that loses, doubles, delays and reorders.

mod attack;
mod life;
mod world;
