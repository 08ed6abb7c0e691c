#!/usr/bin/env bash
# Measures what can be measured today and holds it against docs/numbers.md:
# the size of bin/birthmark, and every metric that a Go benchmark reports under
# a name of that table. Exit code 1: a limit is exceeded.
set -euo pipefail
cd "$(dirname "$0")/.."

out=$(mktemp)
trap 'rm -f "$out"' EXIT

# A benchmark's line is: name, repetitions, then pairs of a value and its unit.
go test -run '^$' -bench . -benchmem ./... >"$out" || { cat "$out"; exit 1; }
grep -E '^(pkg:|Benchmark)' "$out" || true
printf 'size 1 %s device-binary-size\n' "$(stat -c %s bin/birthmark)" >>"$out"

printf '\nAgainst docs/numbers.md:\n'
awk -F '|' '
	FNR == NR { # measurements
		n = split($0, f, /[ \t]+/)
		for (i = 3; i < n; i += 2) measured[f[i + 1]] = f[i]
		next
	}
	{ for (i = 2; i < NF; i++) gsub(/^ +| +$/, "", $i) }
	$3 ~ /^[0-9.]+$/ {
		name = $2; limit = $3 + 0; at_least = $5 ~ /at least$/
		if (!(name in measured)) {
			value = "-"; verdict = "not measured yet (part " $6 ")"; silent++
		} else {
			value = measured[name]; held++
			bad = at_least ? value + 0 < limit : value + 0 > limit
			verdict = bad ? "EXCEEDED" : "held"
			exceeded += bad
		}
		printf "%-26s %12s %s %-12s %-10s %s\n", name, value, at_least ? ">=" : "<=", limit, $4, verdict
	}
	END {
		printf "\n%d measured, %d exceeded, %d not measured yet\n", held, exceeded, silent
		exit exceeded > 0
	}' "$out" docs/numbers.md
