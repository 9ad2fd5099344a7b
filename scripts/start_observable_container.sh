#!/usr/bin/env bash
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) && "$checkout/scripts/setup.sh" base || exit 1
PYTHONPATH=$checkout exec "$checkout/.venv/bin/python" -m slice_bench.cli start "$@"
