#!/usr/bin/env bash
# run.sh STEP...: makes the Makefile's targets one after another, stops at the
# first that fails, and always ends with a table of what took how long.
set -euo pipefail
cd "$(dirname "$0")/.."

# make hands its own flags down; each step is a run of its own.
unset MAKEFLAGS MAKELEVEL

table='' step='' start=0
row() { table+=$(printf '%-10s %6s  %s' "$1" "$2" "$3")$'\n'; }
finish() {
	local verdict=ok
	if [ -n "$step" ]; then
		verdict=FAILED # or stopped in the middle
		row "$step" $((SECONDS - start)) "$verdict"
	fi
	row all "$SECONDS" "$verdict"
	printf '\n%-10s %6s\n%s' step seconds "$table"
}
trap finish EXIT

for step; do
	printf '\n== %s\n' "$step"
	start=$SECONDS
	make --no-print-directory "$step"
	row "$step" $((SECONDS - start)) ok
done
step=''
