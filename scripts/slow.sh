#!/usr/bin/env bash
# The slow lane, one part after another: slow.sh [PART...]. A part that passed is noted in tests/slow-lane.txt, with its commit, and is
# not run again on that commit. So a lane that was stopped goes on where it was.
# REPETITIONS, EXAMPLES and WORKERS are the Makefile's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

passed=tests/slow-lane.txt
kills=tests/faults/test_kill_anywhere.py
declare -A tests=(
    [fuzz]="-n $WORKERS --dist worksteal tests/fuzz"
    [faults]="tests/faults --ignore=$kills"
    [hosts]="tests/integration"
    [fleet]="tests/molecule"
    [kills]="$kills"
)
order=(fuzz faults hosts fleet kills)

[ $# -gt 0 ] || set -- "${order[@]}"
for part; do
    [ -n "${tests[$part]:-}" ] || { echo "slow.sh: there is no part $part, only ${order[*]}" >&2; exit 2; }
done

# A commit of the notes changes nothing that is tested.
files=$(git ls-tree -r HEAD | grep -vF "$passed" | git hash-object --stdin | cut -c1-12)
on="$(git rev-parse --short=12 HEAD) (files $files"
[ -z "$(git status --porcelain -- . ":!$passed")" ] || on="$on, and uncommitted changes"
on="$on), REPETITIONS=$REPETITIONS EXAMPLES=$EXAMPLES"
for part; do
    if grep -sq "^$part passed on .*${on#* }, " "$passed" && [[ $on != *uncommitted* ]]; then
        echo "slow.sh: $part passed on these files already"
        continue
    fi
    echo "slow.sh: $part"
    read -ra words <<< "${tests[$part]}"
    env SGL_REPETITIONS="$REPETITIONS" SGL_FUZZ_EXAMPLES="$EXAMPLES" \
        .venv/bin/python -m pytest -m "long or repeated" --durations=10 "${words[@]}"
    { grep -sv "^$part passed on " "$passed" || true; } > "$passed.new"
    printf '%s passed on %s, %s\n' "$part" "$on" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" >> "$passed.new"
    mv "$passed.new" "$passed"
done
cat "$passed"
