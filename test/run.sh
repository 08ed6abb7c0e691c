#!/usr/bin/env bash
# run.sh STEP...: makes the Makefile's targets one after another, stops at the
# first that fails, and always ends with a table of what took how long.
set -euo pipefail
cd "$(dirname "$0")/.."

# make hands its own flags down; each step is a run of its own.
unset MAKEFLAGS MAKELEVEL

table=''
row() { table+=$(printf '%-10s %6s  %s' "$1" "$2" "$3")$'\n'; }
finish() {
	printf '\n%-10s %6s\n%s' step seconds "$table"
}
trap finish EXIT

for step; do
	printf '\n== %s\n' "$step"
	start=$SECONDS
	if ! make --no-print-directory "$step"; then
		row "$step" $((SECONDS - start)) FAILED
		exit 1
	fi
	row "$step" $((SECONDS - start)) ok
done
row all "$SECONDS" ok
