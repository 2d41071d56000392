#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Runs every benchmark script of this directory and writes docs/benchmarks.md from what they measured.
#
#     tests/bench/all.sh [OPTION…]        # options as compare.sh has them; all scripts get them
#
# Takes less than ten minutes and 20 GB below ${TMPDIR:-/var/tmp}. The exit status is 1 if a script failed or a
# bar was missed; all scripts are run whatever one of them finds.
set -euo pipefail
export LC_ALL=C

bench=$(cd "$(dirname "$0")" && pwd)
kept=$(mktemp -d "${TMPDIR:-/var/tmp}/qverity-bench.XXXXXX")
trap 'rm -rf "$kept"' EXIT
trap 'exit 1' INT TERM HUP

failed=
for script in compare update write serve cp; do
    [ -x "$bench/$script.sh" ] || continue
    echo "== $script.sh ($SECONDS s)"
    "$bench/$script.sh" --images "$kept" "$@" || failed="$failed $script.sh"
done
echo "== done ($SECONDS s)"
python3 "$bench/report.py" || true
[ -z "$failed" ] || { echo "missed a bar, or failed:$failed" >&2; exit 1; }
