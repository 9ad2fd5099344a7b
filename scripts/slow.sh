#!/usr/bin/env bash
# The slow lane, one part after another: slow.sh [PART...]. A part that passed is noted in tests/slow-lane.txt, and is not run again on
# the same files. So a lane that was stopped goes on where it was.
# EVERY, REPETITIONS, EXAMPLES and WORKERS are the Makefile's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

passed=tests/slow-lane.txt
kills=tests/faults/test_kill_anywhere.py
declare -A tests=(
    [fuzz]="-n $WORKERS --dist worksteal tests/fuzz"
    [unit]="-n $WORKERS tests/unit"
    [faults]="tests/faults --ignore=$kills"
    [hosts]="tests/integration"
    [fleet]="tests/molecule"
    [kills]="$kills"
)
order=(fuzz unit faults hosts fleet kills)

[ $# -gt 0 ] || set -- "${order[@]}"
for part; do
    [ -n "${tests[$part]:-}" ] || { echo "slow.sh: there is no part $part, only ${order[*]}" >&2; exit 2; }
done

# A commit of the notes changes nothing that is tested, so it is the other files that count.
files=$(git ls-tree -r HEAD | grep -vF "$passed" | git hash-object --stdin | cut -c1-12)
changed=$(git status --porcelain -- . ":!$passed")
what="files $files${changed:+ and uncommitted changes}, EVERY=$EVERY REPETITIONS=$REPETITIONS EXAMPLES=$EXAMPLES"
for part; do
    if [ -z "$changed" ] && grep -sqF "$part passed: $what;" "$passed"; then
        echo "slow.sh: $part passed on these files already"
        continue
    fi
    echo "slow.sh: $part"
    read -ra words <<< "${tests[$part]}"
    env SGL_KILLS_EVERY="$EVERY" SGL_REPETITIONS="$REPETITIONS" SGL_FUZZ_EXAMPLES="$EXAMPLES" \
        .venv/bin/python -m pytest -m "long or repeated" --durations=10 "${words[@]}"
    { grep -sv "^$part passed: " "$passed" || true; } > "$passed.new"
    printf '%s passed: %s; commit %s, %s\n' "$part" "$what" "$(git rev-parse --short=12 HEAD)" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" >> "$passed.new"
    mv "$passed.new" "$passed"
done
cat "$passed"
