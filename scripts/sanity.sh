#!/usr/bin/env bash
# ansible-test sanity for plugins/ and meta/, on the Python of .venv. Arguments go to ansible-test: scripts/sanity.sh --test pylint
#
# ansible-test refuses a symlinked checkout, so the files that git tracks or would track are copied to a real
# ansible_collections/slice_bench/sglang in a temporary folder. Its own environments stay in ~/.ansible/test, which makes the second
# run short; it passes no PIP_* variable on, so pip has to find its settings in its configuration files.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

readonly PYTHON=$PWD/.venv/bin/python
[ -x .venv/bin/ansible-test ] || die "there is no .venv with ansible-test: run 'make setup'."
export PATH=$PWD/.venv/bin:$PATH

work=$(mktemp -d)
substitute='' # the bootstrap script that this run put in ansible-test's cache
cleanup() {
    rm -rf "$work"
    [ -z "$substitute" ] || rm -f "$substitute" "${substitute%/*}/__pycache__/$(basename "$substitute" .py)".*
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

copy_checkout() { # TARGET
    mkdir -p "$1"
    # A tracked file that has been deleted is listed too; it is no part of the copy.
    git ls-files -coz --exclude-standard |
        while IFS= read -r -d '' file; do
            [ ! -e "$file" ] && [ ! -L "$file" ] || printf '%s\0' "$file"
        done |
        tar --create --file=- --no-recursion --null --files-from=- |
        tar --extract --file=- --directory="$1"
    # ansible-test asks git which files there are.
    git -C "$1" init --quiet
    git -C "$1" add --all
}

# ansible-test downloads get-pip.py once from ansible.com, the only thing that it takes from anywhere but the package index. A lab that
# has an index alone cannot: there, the pip that comes with Python does as well. Its URL and its place in the cache are read from the
# installed ansible-test, because they carry a version.
provide_pip_bootstrap() {
    local found url cache
    if ! found=$("$PYTHON" - <<'PYTHON_END'
import os, re, sys, types
from pathlib import Path
import ansible_test
from ansible_test._internal.python_requirements import get_venv_packages

source = (Path(ansible_test.__path__[0]) / "_util/target/setup/requirements.py").read_text(encoding="utf-8")
version = get_venv_packages(types.SimpleNamespace(version="%d.%d" % sys.version_info[:2]))["pip"]
url = re.search(r"'(https://\S+/get-pip-%s\.py)'", source)
cache = re.search(r"'(~/\S+/get_pip_%s\.py)'", source)
if not (url and cache):
    sys.exit("its source no longer names them where this script looks")
print(url[1] % version, os.path.expanduser(cache[1] % version.replace(".", "_")))
PYTHON_END
    ); then
        say "cannot tell where this ansible-test keeps get-pip.py; leaving that to ansible-test."
        return
    fi
    read -r url cache <<<"$found"
    [ ! -e "$cache" ] || return 0
    if "$PYTHON" -c 'import sys, urllib.request as r; r.urlopen(r.Request(sys.argv[1], method="HEAD"), timeout=10)' "$url" 2>/dev/null; then
        return
    fi
    say "$url cannot be reached: ansible-test's environments get their pip from Python's ensurepip instead."
    mkdir -p "${cache%/*}"
    substitute=$cache
    printf '%s\n' 'import ensurepip' '' 'ensurepip.bootstrap()' >"$cache"
}

collection=$work/ansible_collections/slice_bench/sglang
copy_checkout "$collection"
provide_pip_bootstrap

version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
cd "$collection"
# Everything that ansible-test leaves out, it names with a WARNING or a "Skipping" line of its own; nothing is filtered here.
ansible-test sanity --venv --python "$version" --color no "$@" plugins/ meta/
say "ansible-test sanity passed on Python $version."
