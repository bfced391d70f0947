# shellcheck shell=bash
# What the scripts in this folder share. Sourced, not run.

set -euo pipefail

# The root of the source tree; every script works from here.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# Colours only on a terminal, and never against the user's wish.
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ] && [ "${TERM:-dumb}" != dumb ]; then
	bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' off=$'\e[0m'
else
	bold='' dim='' red='' green='' off=''
fi

say() { printf '%s\n' "${bold}$*${off}"; }
note() { printf '%s\n' "${dim}$*${off}"; }
warn() { printf '%s\n' "${red}$*${off}" >&2; }
die() {
	warn "$*"
	exit 1
}

# as_root COMMAND...: runs it as root, directly or through sudo. Without a
# terminal nobody can type a password, so sudo must not ask for one.
as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif ! command -v sudo >/dev/null; then
		return 1
	elif [ -t 0 ]; then
		sudo -- "$@"
	else
		sudo -n -- "$@"
	fi
}

# quietly NAME COMMAND...: runs the command with its output in a log that is
# shown only if the command ends with an error.
quietly() {
	local name=$1 log status=0
	shift
	log=$(mktemp "${TMPDIR:-/tmp}/hotpatch-log.XXXXXX")
	"$@" >"$log" 2>&1 || status=$?
	if [ "$status" -ne 0 ]; then
		warn "$name ended with status $status:"
		tail -n 60 "$log" >&2
	fi
	rm -f "$log"
	return "$status"
}

# A policy-rc.d that forbids every start of a service (exit status 101, see
# invoke-rc.d(8)). The one that was there is put aside and comes back, also
# after an earlier run that was killed.
policy=/usr/sbin/policy-rc.d
policy_mark='# written by hotpatch/scripts/lib.sh; removed when the installation ends'

allow_services() {
	if grep -qsxF "$policy_mark" "$policy"; then
		as_root rm -f "$policy"
	fi
	if [ -e "$policy.hotpatch-saved" ]; then
		as_root mv -f "$policy.hotpatch-saved" "$policy"
	fi
}

forbid_services() {
	allow_services
	if [ -e "$policy" ]; then
		as_root mv "$policy" "$policy.hotpatch-saved"
	fi
	printf '#!/bin/sh\n%s\nexit 101\n' "$policy_mark" | as_root tee "$policy" >/dev/null
	as_root chmod 755 "$policy"
}

# installed PACKAGE: true if dpkg has it, whole.
installed() {
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# need_packages PACKAGE...: installs those that are missing, starting no
# service. Debian's package names; on a system without apt it says what is
# needed and gives an error.
need_packages() {
	local package missing=()
	if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
		warn "this system has no apt; please install the equivalents of: $*"
		return 1
	fi
	for package; do
		installed "$package" || missing+=("$package")
	done
	[ "${#missing[@]}" -gt 0 ] || return 0
	note "installing ${missing[*]}"
	if ! as_root true 2>/dev/null; then
		warn "cannot become root to install: ${missing[*]}"
		return 1
	fi
	local status=0
	trap allow_services EXIT
	forbid_services
	quietly 'apt-get update' as_root apt-get -q update || true
	quietly 'apt-get install' as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get -q -y --no-install-recommends install "${missing[@]}" || status=$?
	allow_services
	trap - EXIT
	return "$status"
}

# source_lists DIR: apt's lists of source packages, in a place of its own: those of
# the machine have none, as a rule, and stay as they are. With APT_CONFIG=DIR/conf,
# apt uses them.
source_lists() {
	local dir=$1 file
	mkdir -p "$dir"/{lists/partial,archives/partial,parts}
	rm -f "$dir"/parts/*
	for file in /etc/apt/sources.list.d/*.sources; do
		[ -e "$file" ] || continue
		sed 's/^Types:.*/Types: deb-src/' "$file" >"$dir/parts/$(basename "$file")"
	done
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
		[ -e "$file" ] || continue
		sed -n 's/^deb\(-src\)\? /deb-src /p' "$file" | sort -u >"$dir/parts/$(basename "$file" .list)-src.list"
	done
	cat >"$dir/conf" <<-END
		Dir::Etc::sourcelist "/dev/null";
		Dir::Etc::sourceparts "$dir/parts";
		Dir::State::lists "$dir/lists";
		Dir::Cache "$dir";
		APT::Sandbox::User "root";
	END
	APT_CONFIG=$dir/conf quietly 'apt-get update' apt-get -q update
}

# need_go: Go itself is the one thing that is not installed here: the version
# matters, and distributions are often behind.
need_go() {
	command -v go >/dev/null ||
		die "go is not in PATH; install the version that go.mod names (or newer), see go.dev/doc/install"
}
