#!/usr/bin/env bash
# See that a Docker daemon answers on this machine: install Debian's docker.io and start it where that is needed.
# Does nothing when one answers already.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

readonly LOG=/var/log/dockerd.log
readonly START_LIMIT_S=90

answers() { "$@" docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

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
has_dockerd() { PATH=$PATH:/usr/sbin:/usr/local/sbin command -v dockerd >/dev/null 2>&1; }

start_daemon() {
    if [ -d /run/systemd/system ]; then
        say "starting Docker with systemctl."
        as_root systemctl start docker || die "systemd could not start Docker; see: journalctl -u docker"
        return
    fi
    say "starting dockerd in the background (no systemd here); its log is $LOG."
    # Its own session, so that it outlives this script and the terminal. The redirection has to be made as root.
    # shellcheck disable=SC2016
    as_root setsid sh -c 'PATH=$PATH:/usr/sbin:/usr/local/sbin exec dockerd >>"$0" 2>&1 </dev/null' "$LOG" &
}

# How this user sees the daemon that root sees: yes, or what to do about it.
require_access() {
    answers && return
    die "Docker answers root, but not $(id -un): run 'sudo usermod -aG docker $(id -un)', log in again, and repeat."
}

wait_for_daemon() {
    local deadline=$((SECONDS + START_LIMIT_S))
    until answers as_root; do
        if [ ! -d /run/systemd/system ] && [ -z "$(jobs -rp)" ] && ! answers as_root; then
            as_root tail -n 20 "$LOG" >&2 || true
            die "dockerd ended without answering; the end of $LOG is above."
        fi
        [ "$SECONDS" -lt "$deadline" ] || die "Docker does not answer after $START_LIMIT_S s; see $LOG or journalctl -u docker."
        sleep 0.5
    done
}

answers && exit
[ -z "${DOCKER_HOST:-}" ] || die "no Docker daemon answers at DOCKER_HOST=$DOCKER_HOST: start that one, or unset DOCKER_HOST."
can_be_root || die "no Docker daemon answers $(id -un), and without root or sudo none can be installed or started: ask for a running one."
if answers as_root; then require_access; fi
has_dockerd || install_docker
answers as_root || start_daemon
wait_for_daemon
require_access
