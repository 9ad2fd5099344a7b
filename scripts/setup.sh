#!/usr/bin/env bash
# Make .venv (requirements/<level>.txt, hashes checked) and the link by which Ansible finds this checkout as
# slice_bench.sglang. Does nothing when both are there and up to date.
#
#   scripts/setup.sh [base|dev]     base: what the playbooks need; dev: base and what the tests need
#
# PYTHON=<interpreter> picks another Python (3.11 or later) than the first suitable one on the PATH.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

readonly VENV=.venv
readonly STAMP=$VENV/.requirements # written last: an environment without it was never finished
readonly LINK=.ansible/collections/ansible_collections/slice_bench/sglang
readonly CANDIDATES=(python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3)

# The real interpreter behind a name (a pyenv shim, a link, an environment's python), and its version. Fails where the name does
# not run at all (a shim of a version that is not selected) or is too old.
probe_python() {
    "$1" -c '
import os, sys
if sys.version_info < (3, 11):
    sys.exit(1)
print(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable), "{}.{}.{}".format(*sys.version_info))
' 2>/dev/null
}

has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# Print the interpreter to make .venv from.
find_python() {
    local name found usable=()
    if [ -n "${PYTHON:-}" ]; then
        found=$(probe_python "$PYTHON") || die "PYTHON=$PYTHON does not run or is older than 3.11; name another interpreter."
        usable=("${found% *}")
    else
        for name in "${CANDIDATES[@]}"; do
            found=$(probe_python "$name") && usable+=("${found% *}")
        done
    fi
    [ ${#usable[@]} -gt 0 ] || die "no Python 3.11 or later runs here; install one, or name it: make PYTHON=/path/to/python3 ..."
    for name in "${usable[@]}"; do
        has_venv "$name" && echo "$name" && return
    done
    name=${usable[0]}
    case $name in
        /usr/bin/python3*)
            apt_refresh "$name has no venv and ensurepip"
            apt_install "$name has no venv and ensurepip" "${name##*/}-venv"
            ;;
        *) die "$name has no venv and ensurepip; install them for it, or name another Python: make PYTHON=/path/to/python3 ..." ;;
    esac
    has_venv "$name" || die "$name still has no venv and ensurepip after installing ${name##*/}-venv."
    echo "$name"
}

# What .venv must have been made from, on one line. dev holds base, so its digest covers both.
wanted_stamp() { # LEVEL INTERPRETER-AND-VERSION
    local files=(requirements/base.txt)
    [ "$1" = base ] || files+=(requirements/dev.txt)
    echo "$1 $(cat "${files[@]}" | sha256sum | cut -d ' ' -f 1) $2"
}

up_to_date() {
    local made_from stamp
    [ -f "$STAMP" ] || return 1
    # An environment that is there keeps its Python unless PYTHON asks for another one.
    made_from=$(probe_python "$VENV/bin/python") || return 1
    [ -z "${PYTHON:-}" ] || [ "$(probe_python "$PYTHON")" = "$made_from" ] || return 1
    stamp=$(cat "$STAMP")
    [ "$stamp" = "$(wanted_stamp dev "$made_from")" ] && return
    [ "$level" = base ] && [ "$stamp" = "$(wanted_stamp base "$made_from")" ]
}

# dev onto a finished, current base adds packages and replaces none; anything else starts from nothing, because pip takes a package
# that a killed run half wrote for an installed one.
can_extend() {
    local made_from
    [ "$level" = dev ] && [ -f "$STAMP" ] || return 1
    made_from=$(probe_python "$VENV/bin/python") || return 1
    [ -z "${PYTHON:-}" ] || [ "$(probe_python "$PYTHON")" = "$made_from" ] || return 1
    [ "$(cat "$STAMP")" = "$(wanted_stamp base "$made_from")" ]
}

make_venv() {
    local python
    if can_extend; then
        rm -f "$STAMP"
    else
        python=$(find_python)
        rm -rf "$VENV"
        say "making $VENV with $python"
        "$python" -m venv "$VENV"
    fi
    say "installing requirements/$level.txt"
    "$VENV/bin/python" -m pip --disable-pip-version-check install -qq --require-hashes -r "requirements/$level.txt"
    wanted_stamp "$level" "$(probe_python "$VENV/bin/python")" >"$STAMP.new"
    mv "$STAMP.new" "$STAMP"
}

link_collection() {
    local target=../../../.. # from the folder that holds the link, so that the checkout can be moved
    [ "$(readlink "$LINK" 2>/dev/null)" = "$target" ] && return
    [ ! -e "$LINK" ] || [ -L "$LINK" ] || die "$PWD/$LINK is in the way: remove it, it has to be a link to the checkout."
    mkdir -p "${LINK%/*}"
    ln -sfn "$target" "$LINK"
}

level=${1:-base}
case $level in
    base | dev) ;;
    *) die "usage: scripts/setup.sh [base|dev]" ;;
esac

mkdir -p .ansible
# One set-up at a time. pip inherits the lock, so a killed set-up's pip still keeps the next one waiting until it is gone.
exec 9>.ansible/setup.lock
flock 9
link_collection
up_to_date || make_venv
