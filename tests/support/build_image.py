"""An image that builds images in a pod, as kaniko does: Debian's buildah behind an entry point with kaniko's flags."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import docker

from tests.support.images import add_shell, add_text, as_root, ensure_image, shared_libraries

BUILD_IMAGE = "launch-test/build:2"
_ENTRY = """\
#!/bin/sh
# kaniko's flags, by buildah: unpacks the context and builds into a layout; pushes one, and writes the digest.
set -eu
labels=""
action=build
if [ "$1" = push ]; then action=push layout=$2; shift 2; fi
for flag in "$@"; do
  value=${flag#*=}
  case "$flag" in
    --context=tar://*) context=${value#tar://} ;;
    --dockerfile=*) dockerfile=$value ;;
    --destination=*) destination=$value ;;
    --oci-layout-path=*) layout=$value ;;
    --digest-file=*|--no-push) ;;
    --label=*) labels="$labels --label $value" ;;
    --insecure-registry=*|--skip-tls-verify-registry=*) ;;
    *) echo "error building image: unknown flag $flag"; exit 1 ;;
  esac
done
export HOME=/root
[ -z "${DOCKER_CONFIG:-}" ] || export REGISTRY_AUTH_FILE="$DOCKER_CONFIG/config.json"
mkdir -p /build/context /var/tmp /run
if [ $action = push ]; then
  image=$(buildah --storage-driver vfs pull -q "oci:$layout:built")
  exec buildah --storage-driver vfs push --tls-verify=false --digestfile "$LAUNCH_OUTPUT_DIR/outputs.json" "$image" \\
    "docker://$destination" 2>&1
fi
tar -xzf "$context" -C /build/context
buildah --storage-driver vfs build --isolation chroot --tls-verify=false --format docker --network host $labels \\
  --tag built --file "/build/context/$dockerfile" /build/context 2>&1
buildah --storage-driver vfs push built "oci:$layout:built" 2>&1
"""
_POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'
_REGISTRIES = 'unqualified-search-registries = ["docker.io"]\n'


def ensure_build_image(client: docker.DockerClient) -> str:
    """Make the image when the engine does not have it.

    Args:
        client: Client of the engine.

    Returns:
        The image's name.

    Raises:
        FileNotFoundError: buildah is missing here.
    """
    return ensure_image(client, BUILD_IMAGE, add_shell, _add_buildah, changes=['ENTRYPOINT ["/build.sh"]'])


def _add_buildah(tree: tarfile.TarFile) -> None:
    program = shutil.which("buildah")
    if program is None:
        raise FileNotFoundError("no buildah here: run scripts/setup-test-machine.sh as root")
    for file in sorted({Path(program).resolve(), *shared_libraries([Path(program).resolve()])}):
        tree.add(file, str(file).lstrip("/"), filter=as_root)
    add_text(tree, "build.sh", _ENTRY, mode=0o755)
    add_text(tree, "etc/containers/policy.json", _POLICY)
    add_text(tree, "etc/containers/registries.conf", _REGISTRIES)
