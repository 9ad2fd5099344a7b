#!/usr/bin/env bash
# Install requirements/docs.txt (hashes checked) into .cache/docs-venv, where the installed ones are others.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

readonly VENV=.cache/docs-venv
readonly STAMP=$VENV/.requirements # written last

[ -x .venv/bin/ansible-doc ] || die "there is no .venv with ansible-doc: run 'make setup'."
wanted=$(sha256sum <requirements/docs.txt)
[ "$(cat "$STAMP" 2>/dev/null)" != "$wanted" ] || exit 0
say "installing requirements/docs.txt into $VENV"
rm -rf "$VENV"
.venv/bin/python -m venv "$VENV"
"$VENV/bin/python" -m pip --disable-pip-version-check install -qq --require-hashes -r requirements/docs.txt
echo "$wanted" >"$STAMP"
