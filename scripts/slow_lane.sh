#!/usr/bin/env bash
# The slow lane: two halves side by side, as the one mostly waits and the other needs the processor.
# Arguments go to pytest. Environment: PYTHON, SGL_FUZZ_EXAMPLES (inputs for each parser), SGL_REPETITIONS (of what runs at once).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
log=tests/output/slow-beside.log
mkdir -p "$(dirname "$log")"

slow() {
    "$python" -m pytest -m "long or repeated" "$@"
}

beside() {
    local status=0
    slow tests/fuzz || status=1
    slow tests/integration tests/faults/test_connection.py || status=1
    return "$status"
}

beside > "$log" 2>&1 &
other=$!
trap 'kill "$other" 2> /dev/null || true' INT TERM
status=0
slow tests/faults --deselect tests/faults/test_connection.py "$@" || status=1
wait "$other" || { cat "$log"; status=1; }
tail -n 3 "$log"
exit "$status"
