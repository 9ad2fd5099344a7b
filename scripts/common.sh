# Shared by the scripts in this folder; source it. Messages go to standard error, so that a script's output stays its own.
# shellcheck shell=bash

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# Can this user become root at all? sudo may still ask for a password.
can_be_root() { [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# apt_refresh WHY: read the package lists again, or say why nothing can be installed on this system.
apt_refresh() {
    command -v apt-get >/dev/null 2>&1 || die "$1, and this system has no apt-get: install it with the system's own package manager."
    can_be_root || die "$1, and this user is neither root nor has sudo: ask for it to be installed."
    # A mirror that fails to answer is no reason to stop when the lists on disk already name the packages.
    as_root apt-get -qq update || say "apt-get update failed; going on with the package lists that are here."
}

# apt_install WHY PACKAGE...: install Debian packages, saying so first. apt_refresh comes before it.
apt_install() {
    local why=$1
    shift
    say "$why: installing $* with apt-get."
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends "$@" >&2 ||
        die "apt-get could not install $*; its message is above."
}
