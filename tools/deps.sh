#!/bin/sh
# deps.sh [build|dev] - installs the Debian packages that are missing, with apt-get, as root or
# through sudo. Says what it installs; silent when nothing is missing. dev includes build.
# SPDX-License-Identifier: MIT
set -eu
set=${1:-build}
list=$(dirname "$0")/debian-packages.txt

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "deps: not a Debian system: install the equivalents of $list yourself" >&2
    exit 0
fi

installed() { # package command
    if [ -n "$2" ] && command -v "$2" >/dev/null; then return 0; fi
    # shellcheck disable=SC2016
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

missing=
while read -r kind package command; do
    case $kind in build | "$set") ;; *) continue ;; esac
    installed "$package" "$command" || missing="$missing $package"
done <"$list"
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" != 0 ]; then
    as_root=sudo
    if ! command -v sudo >/dev/null; then
        echo "deps: missing packages; as root: apt-get install$missing" >&2
        exit 1
    fi
fi
echo "deps: installing$missing (a minute or two)"
$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update </dev/null
# shellcheck disable=SC2086
$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Acquire::Retries=3 \
    -o Dpkg::Use-Pty=0 install --no-install-recommends $missing </dev/null >/dev/null
