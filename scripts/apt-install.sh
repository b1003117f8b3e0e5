#!/usr/bin/env bash
# Installs Debian packages, as root, without a question, without starting any service of theirs, and only those missing.
# Usage: apt-install.sh PACKAGE…
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive

# One at a time: the first to end takes the file away that keeps the other's services from starting.
[ -n "${APT_INSTALL_LOCKED:-}" ] || APT_INSTALL_LOCKED=1 exec flock --close /tmp/launch-apt-install.lock "$0" "$@"

missing=()
for package in "$@"; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

# A package's own service would take ports and outlive the tests; this file is Debian's way to keep it from starting.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi

get() { apt-get --quiet=2 -o DPkg::Lock::Timeout=300 "$@"; }
echo "apt-install: installing ${missing[*]}"
get install --yes --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
    get update    # no package list yet, or an old one
    get install --yes --no-install-recommends "${missing[@]}" >/dev/null
}
