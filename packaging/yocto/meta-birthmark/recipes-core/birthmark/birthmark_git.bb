SUMMARY = "Identity of a device, made in its TPM and kept for life"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

# A tarball of a clone in which `go mod vendor` was run, so that nothing is fetched
# while it is built.
SRC_URI = "${BIRTHMARK_TARBALL}"
S = "${WORKDIR}/birthmark"

inherit systemd useradd features_check
REQUIRED_DISTRO_FEATURES = "systemd"

# Go 1.26 or newer: a toolchain of one's own where the release's is older.
DEPENDS = "go-native"
RDEPENDS:${PN} = "systemd"
RRECOMMENDS:${PN} = "kernel-module-tpm-tis kernel-module-tpm-crb"

export CGO_ENABLED = "0"
export GOFLAGS = "-mod=vendor -buildvcs=false"
export GOTOOLCHAIN = "local"
export GOCACHE = "${B}/.gocache"
export GOOS = "linux"
export GOARCH = "${@{'x86_64': 'amd64', 'aarch64': 'arm64', 'arm': 'arm', 'riscv64': 'riscv64'}[d.getVar('TARGET_ARCH')]}"
export GOARM = "7"

do_compile() {
	oe_runmake build VERSION="${PV}" SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH}"
}

# The Makefile has the one list of the product's files.
do_install() {
	oe_runmake install DESTDIR="${D}"
}

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system tss; --system birthmark-admin; --system birthmark-telemetry"
USERADD_PARAM:${PN} = "--system --no-create-home --home-dir /var/lib/birthmark --shell /sbin/nologin --user-group birthmark"

SYSTEMD_PACKAGES = "${PN}"
SYSTEMD_SERVICE:${PN} = "birthmark-agent.service birthmark-health.service birthmark-installer.socket"

FILES:${PN} += "${nonarch_libdir} ${datadir}/polkit-1"
INSANE_SKIP:${PN} += "already-stripped"
