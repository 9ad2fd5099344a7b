#!/usr/bin/env bash
# Build the site of README.md, docs/ and the collection's modules, plugins and roles into .cache/site/html.
# Every warning is an error, so each link within the site leads somewhere.
#
#   scripts/site.sh [html|linkcheck]     linkcheck: ask for every external link instead, which needs the internet
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

readonly VENV=.cache/docs-venv
readonly SITE=.cache/site
readonly SOURCE=$SITE/source

builder=${1:-html}

scripts/docs_tools_up.sh
rm -rf "$SITE"
mkdir -p "$SOURCE/collection" "$SITE/pictures/docs"
chmod go-w "$SOURCE/collection" # antsibull-docs writes to no folder that others may write
cp -R README.md CONTRIBUTING.md CHANGELOG.md COPYING docs schemas scripts/site/index.md scripts/site/conf.py "$SOURCE"
cp -R docs/images "$SITE/pictures/docs"
env PATH="$PWD/.venv/bin:$PATH" "$VENV/bin/antsibull-docs" --config-file scripts/site/antsibull-docs.cfg \
    collection --fail-on-error --use-current --squash-hierarchy --dest-dir "$SOURCE/collection" slice_bench.sglang
"$VENV/bin/python" -m sphinx --fail-on-warning --keep-going --quiet --jobs auto --builder "$builder" "$SOURCE" "$SITE/$builder"
[ "$builder" != html ] || say "the site is $SITE/html/index.html"
