#!/usr/bin/env bash
# Installs what Birthmark's build, demo and tests need beyond Go: Debian
# packages, nothing else. `make setup` calls it, and through it demo and test.
#
# It says what is missing and why, asks apt for that alone, and does nothing
# when nothing is missing. No service is started, now or at the next boot.
#
# Exit codes: 0 everything is there; 3 something is not available (Go, apt,
# permission, network).
set -euo pipefail

go_minimum=1.26

# One line a package: name, then the reason why it is needed.
packages='
make                            runs the targets of the Makefile
git                             version and commit time that go into the binaries
gcc                             the race detector of go test needs cgo
libc6-dev                       headers for the same
libssl-dev                      headers for a second TPM in software, which one test is tried against
ca-certificates                 the Go command verifies the module proxy with them
swtpm                           the TPM 2.0 of demo and tests, a real one in software
swtpm-tools                     manufactures it, with endorsement certificates
tpm2-tools                      a second opinion on our keys (tpm2_load, tpm2_readpublic)
libtss2-tcti-swtpm0             lets tpm2-tools talk to swtpm
tpm2-openssl                    lets curl and mosquitto_pub use a key in the TPM, see docs/openssl.md
tpm2-abrmd                      the resource manager that it needs in front of swtpm
libtss2-tcti-tabrmd0            lets both of them talk to it
dbus-daemon                     the bus on which they do; tests start their own
mosquitto                       the MQTT broker that fleets use; tests start their own
mosquitto-clients               mosquitto_pub and mosquitto_sub, peers in tests
strongswan-pki                  an EST client that is not ours
libstrongswan-extra-plugins     HTTPS for it (curl)
libstrongswan-standard-plugins  ECDSA for it (openssl)
openssl                         requests and certificates that are not ours
systemd                         systemd-analyze, -sysusers, -tmpfiles and journalctl, which our units and their like are held against
curl                            EST by hand, as factory scripts do it
jq                              reads the JSON that our commands print, in tests of what scripts would do
lintian                         what Debian itself finds wrong with our package
man-db                          renders the manual, as users read it
groff-base                      for man
file                            tells for which machine a program is
xz-utils                        unpacks the vulnerability database of make vuln
qemu-system-x86                 the machine of test/qemu
ovmf                            its UEFI firmware
mmdebstrap                      makes its Debian, without root tricks
systemd-boot-efi                its boot loader, and the stub that its kernel starts from
binutils                        objcopy puts the kernel, its command line and an initrd behind that stub
sbsigntool                      signs both for Secure Boot
kmod                            depmod tells which modules a module needs
e2fsprogs                       mke2fs writes its root file system, debugfs damages it
fdisk                           sfdisk writes its partition table
dosfstools                      mkfs.vfat makes its EFI system partition
mtools                          mcopy puts files there
zstd                            compresses the initrd
rauc                            makes firmware bundles, as makers of devices do, and speaks to boot loaders
squashfs-tools                  for rauc, and to make hostile file systems
'

die() {
	printf 'setup: %s\n' "$@" >&2
	exit 3
}

# check_go refuses a Go that cannot build this module, rather than letting the
# go command fetch another toolchain behind the user's back.
check_go() {
	command -v go >/dev/null ||
		die "cannot find the go command: put Go's bin folder (often /usr/local/go/bin) into PATH," \
			"or install Go $go_minimum or newer from https://go.dev/dl/"
	local have
	have=$(GOTOOLCHAIN=local GOWORK=off go env GOVERSION) || die "cannot run 'go env': see above"
	[ "$(printf '%s\n' "$go_minimum" "${have#go}" | sort -V | head -n 1)" = "$go_minimum" ] ||
		die "$(command -v go) is $have: Go $go_minimum or newer is needed, see https://go.dev/dl/"
}

# missing prints the names of the packages that are not installed.
missing() {
	local names installed
	names=$(awk 'NF { print $1 }' <<<"$packages")
	# shellcheck disable=SC2086 # the names are to be split
	installed=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' $names 2>/dev/null | awk '$1 == "installed" { print $2 }') || true
	grep -vxF -e "${installed:-none}" <<<"$names" || true
}

# as_root runs a command as root. Off a terminal sudo must not ask.
as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif ! command -v sudo >/dev/null; then
		die "cannot install: not root, and sudo is not here" \
			"run as root: apt-get install --no-install-recommends ${todo[*]}"
	elif [ -t 0 ]; then
		sudo "$@"
	else
		sudo -n "$@"
	fi
}

# install_packages is the part that needs root. Its text is handed to a shell
# of root's, so it stands alone.
install_packages() {
	set -eu
	export DEBIAN_FRONTEND=noninteractive

	# Debian starts a daemon once it is installed, unless policy-rc.d says no.
	policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		trap 'rm -f "$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi

	# A list that cannot be refreshed (a third party's, say) is no reason to
	# stop: the packages may well be found with what is there.
	apt-get -q update || echo 'setup: cannot refresh every package list, trying with what there is' >&2
	apt-get -q -y -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 install --no-install-recommends "$@"

	# And it starts the daemon at the next boot. That is the user's decision,
	# not ours, if the daemon came with us.
	for daemon in mosquitto tpm2-abrmd; do
		case " $* " in
		*" $daemon "*) update-rc.d "$daemon" disable ;;
		esac
	done
}

check_go
if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
	die "this is not Debian: install by hand what these packages hold:" "$packages"
fi

mapfile -t todo < <(missing)
if [ ${#todo[@]} = 0 ]; then
	echo "setup: nothing to do"
	exit 0
fi

echo "setup: installing ${#todo[@]} Debian package(s), without recommended ones:"
for p in "${todo[@]}"; do
	grep -E "^$p " <<<"$packages"
done
for daemon in mosquitto tpm2-abrmd; do
	case " ${todo[*]} " in
	*" $daemon "*) echo "setup: $daemon.service is neither started nor enabled (systemctl enable --now $daemon does it)" ;;
	esac
done
as_root bash -c "$(declare -f install_packages); install_packages \"\$@\"" setup "${todo[@]}" ||
	die "cannot install ${todo[*]}: see above; the names are those of Debian 12 (bookworm)"

left=$(missing)
[ -z "$left" ] || die "still missing after apt-get: $left"
echo "setup: done"
