//! Address arithmetic: pools, blocks, allocation without collisions (DESIGN: IPAM).
