#!/usr/bin/env bash
# See that there are the programs that tests drive: chromium (the report's page) and rsync (a model that the controller sends). Installs
# Debian's packages where they are missing.
set -euo pipefail

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

missing=()
for name in chromium rsync; do
    command -v "$name" >/dev/null 2>&1 || missing+=("$name")
done
if [ ${#missing[@]} -gt 0 ]; then
    apt_refresh "${missing[*]} missing here, which tests drive"
    apt_install "${missing[*]} missing here, which tests drive" "${missing[@]}"
fi
