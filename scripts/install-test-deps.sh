#!/bin/sh
# Installs the real components that the tests talk to, on Debian and its kin.
# With an argument "demo": only what the demonstration needs. Does nothing when all is there.
set -eu

missing=
# need PROGRAM PACKAGE: notes the package if the program is not installed.
need() {
	PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

need swtpm swtpm
need ssh-keygen openssh-client
if [ "${1:-}" != demo ]; then
	need sshd openssh-server
	need swtpm_setup swtpm-tools
	need swtpm_localca swtpm-tools
	need tpm2_dictionarylockout tpm2-tools
	need systemd-analyze systemd
	need systemd-socket-activate systemd
	[ -n "$(find /usr/lib -name tpm2.so -path '*ossl-modules*' 2>/dev/null)" ] || missing="$missing openssl tpm2-openssl"
	need gcc gcc # go test -race needs it
	[ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"
	need softhsm2-util softhsm2
	need certutil libnss3-tools # with libnss3
	need pcscd pcscd
	need pkg-config pkg-config
	[ -e /usr/include/PCSC/winscard.h ] || missing="$missing libpcsclite-dev" # piv-go, in a benchmark
	[ -e /usr/lib/pcsc/drivers/serial/libifdvpcd.so ] || missing="$missing vsmartcard-vpcd"
	need pcsc_scan pcsc-tools
	need opensc-tool opensc # with opensc-pkcs11
	need p11tool gnutls-bin
	need p11-kit p11-kit
	[ -n "$(find /usr/lib -name p11-kit-client.so 2>/dev/null)" ] || missing="$missing p11-kit-modules"
	need yubico-piv-tool yubico-piv-tool
	need yubikey-agent yubikey-agent
	need script bsdutils
	need openssl openssl
	need gpg gpg
	need gpg-agent gpg-agent
	need gpgconf gpgconf
	need pinentry-curses pinentry-curses
	need pinentry-tty pinentry-tty
fi
[ -n "$missing" ] || exit 0

echo "installing:$missing" >&2
if ! command -v apt-get >/dev/null 2>&1; then
	echo "$0: no apt-get here; install these yourself:$missing" >&2
	exit 1
fi
as_root=
if [ "$(id -u)" -ne 0 ]; then
	if ! command -v sudo >/dev/null 2>&1; then
		echo "$0: neither root nor sudo; as root: apt-get install$missing" >&2
		exit 1
	fi
	as_root=sudo
fi
export DEBIAN_FRONTEND=noninteractive
# Word splitting of $missing is meant.
# shellcheck disable=SC2086
if ! $as_root apt-get install -y -q --no-install-recommends $missing >&2; then
	$as_root apt-get update -q >&2
	$as_root apt-get install -y -q --no-install-recommends $missing >&2
fi
