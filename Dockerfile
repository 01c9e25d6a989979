# The image of `cargo xtask image`, for those who build with an engine: docker build -t kube-portal:0.1.0 .
#
# Debian, because its glibc is the oldest that the binary has to run with, and of no importance to anybody else: the
# image brings its own.
FROM debian:bookworm-slim AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential ca-certificates curl git \
    && rm -rf /var/lib/apt/lists/*
RUN curl --proto '=https' --tlsv1.2 --fail --silent --show-error https://sh.rustup.rs \
    | sh -s -- -y --no-modify-path --profile minimal --default-toolchain none
ENV PATH=/root/.cargo/bin:$PATH
WORKDIR /src
COPY . .
# rust-toolchain.toml names the compiler; `cargo xtask` installs the one for the kernel's side.
RUN rustup toolchain install --no-self-update && cargo xtask image --root /image

FROM scratch
ENV PATH=/usr/local/bin
COPY --from=build /image/ /
LABEL org.opencontainers.image.title=kube-portal \
      org.opencontainers.image.version=0.1.0 \
      org.opencontainers.image.licenses=Apache-2.0 \
      kube-portal.abi=5
ENTRYPOINT ["/usr/local/bin/kube-portal"]
