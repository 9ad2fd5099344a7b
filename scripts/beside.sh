#!/usr/bin/env bash
# Run two commands side by side: beside.sh LOG COMMAND... -- COMMAND...
# What the first prints goes to LOG: its last lines are shown in the end, and all of it where it failed. Fails where either did.
set -euo pipefail

log=$1
shift
first=()
while [ "$1" != -- ]; do
    first+=("$1")
    shift
done
shift
mkdir -p "$(dirname "$log")"

# A group of its own, so that it ends as a whole.
setsid "${first[@]}" > "$log" 2>&1 < /dev/null &
other=$!
trap 'kill -- "-$other" 2> /dev/null || true' EXIT INT TERM
status=0
"$@" || status=1
wait "$other" || { status=1; cat "$log"; }
trap - EXIT
tail -n 3 "$log"
exit "$status"
