#!/usr/bin/env bash
# Builds both binaries and the package twice, from two copies of the files, and holds the bytes
# against each other: in one folder with the build cache that everything uses, and
# in a folder of another name and depth with an empty cache and another umask,
# time zone, language and home. Downloaded modules are shared: go.sum holds them.
#
# A comparison that never fails proves nothing: a third build, of another commit
# time, has to differ.
set -euo pipefail
cd "$(dirname "$0")/.."

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
here="$tmp/here"
there="$tmp/another place/further down"
mkdir -p "$here" "$there" "$tmp/home"

# What git would commit; in an archive without git, everything.
files() { git ls-files -z --cached --others --exclude-standard 2>/dev/null || find . -type f -print0; }
files | tar --null --ignore-failed-read -T - -cf - | tar -xf - -C "$here"
cp -a "$here/." "$there"

version=$(git describe --tags --always 2>/dev/null || echo unknown)
GOMODCACHE=$(go env GOMODCACHE) GOPROXY=$(go env GOPROXY) GOSUMDB=$(go env GOSUMDB)
export GOMODCACHE GOPROXY GOSUMDB

# build SECONDS makes the binaries of a commit of that time, in this folder.
build() { make --no-print-directory -s build deb DEBARCHES=amd64 DEBVERSION=1.0.0 VERSION="$version" SOURCE_DATE_EPOCH="$1" >/dev/null; }
build_there() (
	umask 077
	cd "$there"
	export HOME="$tmp/home" GOCACHE="$tmp/cache" TZ=Pacific/Kiritimati LC_ALL=C
	build "$1"
)

(cd "$here" && build 1700000000)
build_there 1700000000
for b in birthmark birthmark-lab birthmark_1.0.0_amd64.deb; do
	cmp "$here/bin/$b" "$there/bin/$b"
	echo "repro: $b $(sha256sum <"$there/bin/$b" | cut -c1-64)"
done
build_there 1700000001
if cmp -s "$here/bin/birthmark" "$there/bin/birthmark"; then
	echo "repro: another commit time gives the same bytes: the comparison is blind" >&2
	exit 1
fi
echo "repro: two folders, two caches, the same bytes"
