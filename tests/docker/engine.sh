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
    local storage
    # overlay file systems do not stack on every machine's own; vfs works everywhere, and copies every layer
    for storage in ${DOCKER_STORAGE:-overlay2 vfs}; do
        run_engine "$storage" && return
        forget_networks && run_engine "$storage" && return
    done
    echo "dockerd did not start:" >&2
    grep --max-count=1 --after-context=20 -E '^(panic|failed)' /var/log/mini-stream-dockerd.log >&2 ||
        tail -20 /var/log/mini-stream-dockerd.log >&2
    return 1
}

run_engine() {
    local before
    before=$(cat /run/docker.pid 2>/dev/null || true)
    for _ in {1..300}; do
        [ "$(cat "/proc/$before/comm" 2>/dev/null)" = dockerd ] || break
        docker info >/dev/null 2>&1 && return
        sleep 0.2  # it still starts or stops, and a second one would refuse to start
    done
    nohup dockerd --storage-driver="$1" >/var/log/mini-stream-dockerd.log 2>&1 </dev/null &
    echo $! >/run/mini-stream-dockerd.pid
    while kill -0 $! 2>/dev/null; do
        docker info >/dev/null 2>&1 && return
        sleep 0.2
    done
    return 1
}

# An engine that was killed while it made a network has written half of it down, and panics when it reads that again.
# Containers whose network is gone do not start any more, so this is done only where the engine does not start anyway.
forget_networks() {
    grep -q '^panic.*index out of range' /var/log/mini-stream-dockerd.log || return
    rm -f /var/lib/docker/network/files/local-kv.db
    local bridge
    for bridge in $(ip -o link show type bridge | grep -oE 'br-[0-9a-f]{12}' | sort -u); do
        ip link delete "$bridge"  # it still holds its network's addresses
    done
}

make_base() {
    docker image inspect "$BASE" >/dev/null 2>&1 && return
    timeout 20 docker pull --quiet "$BASE" 2>/dev/null && return
    local root
    root=$(mktemp -d)
    chmod 755 "$root"  # it becomes the image's /, which users other than root must enter
    debootstrap --variant=minbase --include=ca-certificates bookworm "$root" >/dev/null
    slim "$root"
    cp -r /etc/ssl/certs/. "$root/etc/ssl/certs/"
    tar -C "$root" -c . | docker import - "$BASE" >/dev/null
    rm -rf "$root"
}

# Debian's official slim image leaves out the same, now and in whatever apt-get installs later.
slim() {
    local out
    for out in doc info man locale lintian; do
        echo "path-exclude /usr/share/$out/*"
        find "$1/usr/share/$out" -mindepth 1 ! -name copyright ! -type d -delete 2>/dev/null || true
    done >"$1/etc/dpkg/dpkg.cfg.d/docker"
    echo "path-include /usr/share/doc/*/copyright" >>"$1/etc/dpkg/dpkg.cfg.d/docker"
    echo 'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin"; };' \
        >"$1/etc/apt/apt.conf.d/docker-clean"
    rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/log/*
}

make_proxies() {
    docker build --quiet --tag "$PROXIES" "$(dirname "$0")/../../s2cs/dataservers/images" >/dev/null
}

# What tests that were killed have left: it would be in the way of the next ones.
sweep() {
    local project
    for project in mini-stream-test mini-stream-test-delivery; do
        docker ps --all --quiet --filter "label=com.docker.compose.project=$project"
    done | xargs --no-run-if-empty docker rm --force >/dev/null
    docker network ls --quiet --filter name=mini-stream-test | xargs --no-run-if-empty docker network rm >/dev/null
    docker volume ls --quiet --filter name=mini-stream-test | xargs --no-run-if-empty docker volume rm >/dev/null
}

start_engine
sweep
make_base
make_proxies
echo "Docker engine $(docker version --format '{{.Server.Version}}') with $BASE and $PROXIES"
