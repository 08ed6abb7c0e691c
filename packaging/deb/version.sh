#!/bin/sh
# version.sh DESCRIBE EPOCH: Debian's spelling of what `git describe` says. It sorts as
# commits do: a release above its candidates and below what follows it, and a tree that
# has no release below all of them, by the commit's time. There is no hyphen in it,
# which would start a Debian revision.
#
#   1a2b3c4               0~git20261125.053712.1a2b3c4
#   v1.2.0-rc1            1.2.0~rc1
#   v1.2.0                1.2.0
#   v1.2.0-4-g1a2b3c4     1.2.0+4.g1a2b3c4
#
# A tree with changes has +0.dirty at its end.
set -eu

describe=${1%-dirty} dirty=''
[ "$describe" = "$1" ] || dirty=+0.dirty
case $describe in
v[0-9]*.*)
	version=$(printf '%s' "${describe#v}" | sed -E 's/-([0-9]+)-(g[0-9a-f]+)$/+\1.\2/; s/-/~/; s/-/./g')
	;;
*)
	version=0~git$(date -u -d "@$2" +%Y%m%d.%H%M%S).$describe
	;;
esac
echo "$version$dirty"
