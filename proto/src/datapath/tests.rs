//! Every reason and every way on, with real frames.
