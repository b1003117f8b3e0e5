"""Images that a cluster's nodes can pull: they cannot reach a registry on the agent's own machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from prefect_launch.errors import SpecError
from prefect_launch.registries.base import is_loopback, parse_reference

_NEVER: Final = "Never"


def check_image_reachable(image: str, where: str, node_registries: Collection[str] = ()) -> None:
    """Refuse an image in a registry that only the agent's machine has.

    Args:
        image: its name.
        where: it is named, for the message.
        node_registries: hosts such as `localhost:32000` at which the cluster's nodes have a registry of their own.

    Raises:
        SpecError: with the next step.
    """
    host = parse_reference(image).host
    if is_loopback(host) and host not in node_registries:
        raise SpecError(
            f"{where} is the image {image!r}, which is on the machine {host!r}: the nodes of a cluster cannot pull it"
            " from the agent's own. Push it to a registry that they reach. Where the nodes have a registry there, the"
            f" queue's owner adds {host!r} to the option node-registries."
        )


def check_container_images(pod: Mapping[str, Any], where: str, node_registries: Collection[str]) -> None:
    """Refuse containers whose images nodes cannot pull; one with `imagePullPolicy: Never` is on the nodes already.

    Args:
        pod: its spec, whole.
        where: it stands, for the message.
        node_registries: as for `check_image_reachable`.

    Raises:
        SpecError: naming the container.
    """
    for field in ("initContainers", "containers"):
        for container in pod.get(field) or ():
            if container.get("image") and container.get("imagePullPolicy") != _NEVER:
                place = f"In {where}.{field}, {container.get('name')!r}"
                check_image_reachable(container["image"], place, node_registries)
