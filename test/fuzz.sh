#!/usr/bin/env bash
# Runs every fuzz target of the module, one after another, each for FUZZTIME
# (default 10s). A target is found by what `go test -list` says, so a new one
# needs no line here. The input of a failure is kept by go test under the
# package's testdata/fuzz: commit it with the fix.
set -euo pipefail
cd "$(dirname "$0")/.."
fuzztime=${FUZZTIME:-10s}

# list prints "PACKAGE TARGET" lines: go test prints the names of a package and
# then, as its verdict, the package. The tests under test/ want the binaries
# built, and have nothing to fuzz.
list() {
	go list ./... | grep -v '^birthmark/test/' | xargs go test -list '^Fuzz' |
		awk '/^Fuzz/ { names[++n] = $1 } $1 == "ok" { for (i = 1; i <= n; i++) print $2, names[i]; n = 0 }'
}

# harmless tells the end of FUZZTIME from a finding. Before Go 1.27 go test now
# and then reports its own deadline as a failure (golang/go#75804); a finding,
# unlike that, names the input that it wrote.
harmless() {
	grep -qxE ' +context deadline exceeded' "$1" && ! grep -q 'Failing input written to' "$1"
}

out=$(mktemp)
trap 'rm -f "$out"' EXIT
count=0
targets=$(list)
while read -r package target; do
	[ -n "$target" ] || continue
	echo "fuzz $package $target $fuzztime"
	if ! go test -run '^$' -fuzz "^$target\$" -fuzztime "$fuzztime" -fuzzminimizetime 1s "$package" >"$out" 2>&1 && ! harmless "$out"; then
		cat "$out"
		echo "fuzz: $package $target failed" >&2
		exit 1
	fi
	grep -E '^fuzz: elapsed' "$out" | tail -n 1
	count=$((count + 1))
done <<<"$targets"
[ "$count" -gt 0 ] || { echo "fuzz: there are no targets" >&2; exit 1; }
echo "fuzz: $count targets, $fuzztime each, nothing found"
