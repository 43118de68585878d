//! Mesh-wide objects: networks, address blocks, members; last-writer-wins by (HLC, author).
