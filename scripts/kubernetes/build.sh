#!/usr/bin/env bash
# The programs of the tests' Kubernetes, built once a recipe into a cache outside the clone; two at once build once.
# Usage: build.sh          build them when they are not there (root; ten minutes on two cores)
#        build.sh --wait   wait for a build that runs, and fail when they are not there then
#        build.sh --where  print their folder
set -euo pipefail
{    # read whole before it runs: whoever changes this file meanwhile changes nothing of a build
here="$(cd "$(dirname "$0")" && pwd)"
key="$(sha256sum "$here/recipe.sh" | cut -c 1-16)-$(uname -m)"
folder="${XDG_CACHE_HOME:-$HOME/.cache}/prefect-launch-tests/kubernetes-$key"
if [ "${1:-}" = --where ]; then echo "$folder"; exit; fi
[ ! -d "$folder" ] || exit 0

mkdir -p "$(dirname "$folder")"
[ -n "${KUBERNETES_BUILD_LOCKED:-}" ] || KUBERNETES_BUILD_LOCKED=1 exec flock --close "$folder.lock" "$0" "$@"
if [ "${1:-}" = --wait ]; then
    echo "kubernetes: not built: run scripts/kubernetes/build.sh as root; $folder.log tells of a build that failed" >&2
    exit 1
fi

rm -rf "$folder".building.*    # of a build that was killed
work="$(mktemp -d "$folder.building.XXXXXX")"
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
echo "kubernetes: building from Debian's source package, about ten minutes on two cores; log: $folder.log" >&2
"$here/../apt-install.sh" ca-certificates gcc golang-1.19-go golang-github-modern-go-reflect2-dev libc6-dev make rsync
nice -n 10 "$here/recipe.sh" "$work" > "$folder.log" 2>&1 || {
    tail -20 "$folder.log" >&2
    echo "kubernetes: the build failed; the whole log: $folder.log" >&2
    exit 1
}
mv "$work/programs" "$folder"
echo "kubernetes: built in $SECONDS s" >&2
exit
}
