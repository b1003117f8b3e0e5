#!/usr/bin/env bash
# Brings a Debian machine to where the tests can run: git, ssh, a Docker Engine, PostgreSQL, images' shell, Kubernetes, Slurm.
# Idempotent: on a machine that has all of it nothing is asked of the network. It starts no server; the tests do.
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
has buildah || wanted+=(buildah)
has_postgres || wanted+=(postgresql)
has slurmctld || wanted+=(slurm-wlm slurm-wlm-basic-plugins)
has munged || wanted+=(munge)
[ -e /etc/ssl/certs/ca-certificates.crt ] || wanted+=(ca-certificates)
is_root_on_debian() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

# A Kubernetes of one node, unless the caller names a cluster. Its programs are built while the other checks run.
if [ -z "${PREFECT_LAUNCH_TEST_KUBECONFIG:-}" ]; then
    has etcd || wanted+=(etcd-server)
fi
has kubectl || wanted+=(kubernetes-client)
if [ ${#wanted[@]} -gt 0 ] && is_root_on_debian; then
    scripts/apt-install.sh "${wanted[@]}"
    wanted=()
fi
if [ -z "${PREFECT_LAUNCH_TEST_KUBECONFIG:-}" ] && is_root_on_debian; then
    scripts/kubernetes/build.sh </dev/null &
fi
[ ${#wanted[@]} -gt 0 ] || exit 0
echo "setup-test-machine: missing here: ${wanted[*]} (Debian's package names)." >&2
echo "setup-test-machine: install them, or call make as root; without them the tests that need them are skipped." >&2
if [ "${CI:-}" = true ] || [ "${LAUNCH_TEST_REQUIRE_ENGINE:-}" = 1 ]; then exit 1; fi
