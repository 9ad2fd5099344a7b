#!/usr/bin/env bash
# See that a Docker daemon answers on this machine, and that debootstrap is there: install Debian's packages and start the daemon where
# that is needed. Does nothing when all is well already.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

readonly LOG=/var/log/dockerd.log
readonly START_LIMIT_S=90
dockerd_pid='' # of the one that this script started itself

answers() { "$@" docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# A daemon is there, and this user may not open its socket. The words are Docker's own (client/request.go) in every release.
is_refused() { [[ $(docker version 2>&1) == *'permission denied while trying to connect'* ]]; }

# dockerd and its client; later releases of Debian and Ubuntu have the client and BuildKit in packages of their own.
install_docker() {
    local extra packages=(docker.io)
    apt_refresh "no dockerd is installed here"
    for extra in docker-cli docker-buildx; do
        apt-cache show "$extra" >/dev/null 2>&1 && packages+=("$extra")
    done
    apt_install "no dockerd is installed here" "${packages[@]}"
}

# Root's folders are often missing from another user's PATH.
has() { PATH=$PATH:/usr/sbin:/usr/local/sbin command -v "$1" >/dev/null 2>&1; }

start_daemon() {
    if [ -d /run/systemd/system ]; then
        say "starting Docker with systemctl."
        as_root systemctl start docker || die "systemd could not start Docker; see: journalctl -u docker"
        return
    fi
    say "starting dockerd in the background (no systemd here); its log is $LOG."
    # Its own session, and none of this script's outputs, so that it outlives both and a pipe behind them is not kept open;
    # deaf to the hang-up that sudo's terminal sends as it closes, until dockerd is up and takes that signal for its own.
    # shellcheck disable=SC2016
    dockerd_pid=$(as_root sh -c 'trap "" HUP; PATH=$PATH:/usr/sbin:/usr/local/sbin; setsid dockerd >>"$0" 2>&1 </dev/null & echo $!' "$LOG")
}

# How this user sees the daemon that root sees: yes, or what to do about it.
require_access() {
    answers && return
    die "Docker runs, but $(id -un) has no permission to use it: run 'sudo usermod -aG docker $(id -un)' (or ask an administrator to), log in again, and repeat."
}

# Ours, or another one that is on its way up (the package's own init script): ours then ends at once.
dockerd_runs() {
    local pid
    [ -d "/proc/$dockerd_pid" ] || { pid=$(cat /var/run/docker.pid 2>/dev/null) && [ -d "/proc/$pid" ]; }
}

wait_for_daemon() {
    local deadline=$((SECONDS + START_LIMIT_S))
    until answers as_root; do
        if [ -n "$dockerd_pid" ] && ! dockerd_runs && ! answers as_root; then
            as_root tail -n 20 "$LOG" >&2 || true
            die "dockerd ended without answering; the end of $LOG is above."
        fi
        [ "$SECONDS" -lt "$deadline" ] || die "Docker does not answer after $START_LIMIT_S s; see $LOG or journalctl -u docker."
        sleep 0.5
    done
}

ensure_docker() {
    answers && return
    ! is_refused || require_access
    [ -z "${DOCKER_HOST:-}" ] || die "no Docker daemon answers at DOCKER_HOST=$DOCKER_HOST: start that one, or unset DOCKER_HOST."
    can_be_root || die "no Docker daemon answers $(id -un), and without root or sudo none can be installed or started: ask for one."
    if ! answers as_root; then
        has dockerd || install_docker
        # The package's own scripts may have started it.
        answers as_root || start_daemon
        wait_for_daemon
    fi
    require_access
}

# The local flavour's base image is made with it, once. A flavour whose base is pulled does without, so its absence is no error here.
ensure_debootstrap() {
    has debootstrap && return
    if [ "$(id -u)" -ne 0 ] && ! sudo -n true 2>/dev/null; then
        return
    fi
    (
        apt_refresh "no debootstrap is installed here"
        apt_install "no debootstrap is installed here" debootstrap
    ) || say "going on without debootstrap: only the local flavour's base image needs it."
}

ensure_docker
ensure_debootstrap
