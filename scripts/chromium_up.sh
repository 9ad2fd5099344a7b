#!/usr/bin/env bash
# See that there is a browser for the tests of the report's page: installs Debian's chromium where it is missing.
set -euo pipefail

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if ! command -v chromium >/dev/null 2>&1; then
    apt_refresh "no chromium is installed here"
    apt_install "no chromium is installed here" chromium
fi
