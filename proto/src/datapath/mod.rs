//! What happens to one frame.
