#!/usr/bin/env bash
# Notes in tests/slow-lane.txt that the slow lane passed: on which commit, when, and with which numbers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

commit=$(git rev-parse --short=12 HEAD)
[ -z "$(git status --porcelain --untracked-files=no -- . ':!tests/slow-lane.txt')" ] || commit="$commit and uncommitted changes"
printf 'make slow passed on %s, %s, REPETITIONS=%s EXAMPLES=%s\n' \
    "$commit" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "${REPETITIONS:-50}" "${EXAMPLES:-10000}" | tee tests/slow-lane.txt
