#!/usr/bin/env bash
# Brings a Debian machine to where the tests can run: git, ssh, a Docker Engine, PostgreSQL, a static shell for images.
# Idempotent: on a machine that has all of it nothing is asked of the network. It starts nothing; the tests do.
set -euo pipefail
cd "$(dirname "$0")/.."

has() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }
has_engine() { has dockerd || { has docker && docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }; }
has_postgres() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || has initdb; }

wanted=()
has git || wanted+=(git)
has busybox || wanted+=(busybox-static)
has ip || wanted+=(iproute2)
has iptables || wanted+=(iptables)
has_engine || wanted+=(docker.io)
has sshd || wanted+=(openssh-server)
has openssl || wanted+=(openssl)
has docker-registry || wanted+=(docker-registry)
has_postgres || wanted+=(postgresql)
[ -e /etc/ssl/certs/ca-certificates.crt ] || wanted+=(ca-certificates)
[ ${#wanted[@]} -gt 0 ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    exec scripts/apt-install.sh "${wanted[@]}"
fi
echo "setup-test-machine: missing here: ${wanted[*]} (Debian's package names)." >&2
echo "setup-test-machine: install them, or call make as root; without them the tests that need them are skipped." >&2
if [ "${CI:-}" = true ] || [ "${LAUNCH_TEST_REQUIRE_ENGINE:-}" = 1 ]; then exit 1; fi
