# keepfs in a container. docs/install.md explains the privileges that a mount needs:
#     docker build -t keepfs .
#     docker run --rm --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor=unconfined \
#         --mount type=bind,source=/mnt,target=/mnt,bind-propagation=rshared \
#         -v keepfs-state:/var/lib/keepfs --env-file arvados.env --stop-timeout 330 keepfs /mnt/keep
FROM debian:bookworm-slim AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates gcc libfuse3-dev pkg-config python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN python3 -m venv /opt/keepfs \
    && /opt/keepfs/bin/pip install --no-cache-dir /source

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates fuse3 libfuse3-3 python3 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/keepfs /opt/keepfs
ENV PATH=/opt/keepfs/bin:$PATH
# The names in upload/, and files that are not stored yet: keep them in a volume.
VOLUME /var/lib/keepfs
# docker stop: keepfs stores everything and unmounts; --stop-timeout must be longer than that.
STOPSIGNAL SIGTERM
ENTRYPOINT ["keepfs", "mount", "--foreground"]
CMD ["/mnt/keep"]
