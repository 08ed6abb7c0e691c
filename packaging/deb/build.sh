#!/usr/bin/env bash
# build.sh ARCH VERSION EPOCH OUT BINARY: makes OUT/birthmark_VERSION_ARCH.deb of the
# device binary, or the same files as OUT/birthmark_VERSION_ARCH.tar.gz (riscv64, which
# Debian 12 does not have), and prints its path. `make deb` calls it.
#
# VERSION is Debian's spelling, EPOCH the time of everything in it, in seconds since
# 1970. What is in the package is what `make install` lays, the manual, completions, and
# Debian's papers; the same commit gives the same bytes.
set -euo pipefail
arch=$1 version=$2 out=$(realpath -m "$4") binary=$(realpath "$5")
export LC_ALL=C TZ=UTC SOURCE_DATE_EPOCH=$3
umask 022
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root

make --no-print-directory -s install AGENT="$binary" DESTDIR="$root"
go run -buildvcs=false -tags pages ./cmd/agent pages "$root/usr" packaging/man/*.md
find "$root/usr/share/man" -type f -exec gzip -9n {} +

doc=$root/usr/share/doc/birthmark
install -D -m 644 packaging/deb/copyright "$doc/copyright"
sed -e "s/@VERSION@/$version/" -e "s/@DATE@/$(date -uR -d "@$SOURCE_DATE_EPOCH")/" packaging/deb/changelog | gzip -9n >"$doc/changelog.gz"
mkdir -p "$out"

if [ "$arch" = riscv64 ]; then
	name=$out/birthmark_${version}_$arch.tar.gz
	tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -C "$root" -c . | gzip -9n >"$name"
	echo "$name"
	exit
fi

install -D -m 644 packaging/deb/lintian-overrides "$root/usr/share/lintian/overrides/birthmark"
install -d "$root/DEBIAN"
install -m 755 packaging/deb/{postinst,prerm,postrm} "$root/DEBIAN"
sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$arch/" -e "s/@SIZE@/$(find "$root/usr" -type f -printf '%s\n' | awk '{ n += $1 } END { print int(n / 1024) + 1 }')/" \
	packaging/deb/control >"$root/DEBIAN/control"
(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
chmod 755 "$root" # mktemp's is 700, and dpkg-deb keeps it
name=$out/birthmark_${version}_$arch.deb
dpkg-deb --root-owner-group -Zxz --build "$root" "$name" >/dev/null
echo "$name"
