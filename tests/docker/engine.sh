#!/usr/bin/env bash
# Makes sure that a Docker engine answers, and that it has the images which the tests name. Needs root.
#
# Where no registry answers, the base image is made here: Debian's own packages, and this machine's CA certificates.
set -euo pipefail

BASE=debian:bookworm-slim
PROXIES=mini-stream-proxies
export DOCKER_API_VERSION=${DOCKER_API_VERSION:-1.41}

start_engine() {
    docker info >/dev/null 2>&1 && return
    local storage=overlay2  # overlay file systems do not stack: where Docker's folder lies on one, vfs copies
    mkdir -p /var/lib/docker
    [ "$(stat -f -c %T /var/lib/docker)" != overlayfs ] || storage=vfs
    nohup dockerd --storage-driver="${DOCKER_STORAGE:-$storage}" >/var/log/mini-stream-dockerd.log 2>&1 </dev/null &
    echo $! >/run/mini-stream-dockerd.pid
    for _ in $(seq 100); do
        docker info >/dev/null 2>&1 && return
        sleep 0.2
    done
    echo "dockerd did not start:" >&2
    tail -20 /var/log/mini-stream-dockerd.log >&2
    return 1
}

make_base() {
    docker image inspect "$BASE" >/dev/null 2>&1 && return
    timeout 20 docker pull --quiet "$BASE" 2>/dev/null && return
    local root
    root=$(mktemp -d)
    debootstrap --variant=minbase --include=ca-certificates bookworm "$root" >/dev/null
    cp -r /etc/ssl/certs/. "$root/etc/ssl/certs/"
    rm -rf "$root"/usr/share/{doc,man,locale} "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    tar -C "$root" -c . | docker import - "$BASE" >/dev/null
    rm -rf "$root"
}

make_proxies() {
    docker build --quiet --tag "$PROXIES" "$(dirname "$0")/../../s2cs/dataservers/images" >/dev/null
}

start_engine
make_base
make_proxies
echo "Docker engine $(docker version --format '{{.Server.Version}}') with $BASE and $PROXIES"
