# The image holds one static binary and nothing else. Build the binary first:
#   RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --package vxmesh --target x86_64-unknown-linux-gnu
#   docker build --tag vxmesh .
FROM scratch
COPY target/x86_64-unknown-linux-gnu/release/vxmesh /vxmesh
VOLUME ["/var/lib/vxmesh", "/run/vxmesh"]
EXPOSE 7760/udp 7761/udp
ENTRYPOINT ["/vxmesh"]
CMD ["agent"]
