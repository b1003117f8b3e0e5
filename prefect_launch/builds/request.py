"""One image that is to be built, with all that goes into it: a frozen value, whose digest is the image's tag.

The same input has the same tag on every agent, so what is there under the tag need not be built. 128 bits of the
digest are in the tag: nobody meets a collision, by accident or by design of the code alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Final

from prefect_launch.builds.context import BuildContext
from prefect_launch.builds.dockerfile import Recipe, write_dockerfile

#: Raised when the way to build changes what comes out for the same input.
_FORMAT: Final = "1"
_TAG_CHARS: Final = 32
#: Of images that stay on the engine that built them.
LOCAL_REPOSITORY: Final = "prefect-launch/built"


class ImageLabels:
    """The labels of built images."""

    TAG: Final = "prefect-launch.image"
    BASE: Final = "prefect-launch.base"
    STEP: Final = "prefect-launch.step"


@dataclass(frozen=True)
class BuildOrder:
    """An image that is to be built.

    Attributes:
        context: what goes in.
        dockerfile: path of the Dockerfile in the context; None: the recipe is written.
        recipe: of a generated Dockerfile.
        base: the base image of a generated Dockerfile, and its digest.
        platform: such as linux/amd64.
        repository: what the image is called, without its tag.
    """

    context: BuildContext
    dockerfile: str | None = None
    recipe: Recipe | None = None
    base: str = ""
    platform: str | None = None
    repository: str = LOCAL_REPOSITORY
    tag: str = field(init=False, default="")

    def __post_init__(self) -> None:
        parts = {
            "format": _FORMAT,
            "context": self.context.digest,
            "dockerfile": self.dockerfile or "",
            "generated": write_dockerfile(self.recipe) if self.recipe else "",
            "base": self.base,
            "platform": self.platform or "",
        }
        whole = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        object.__setattr__(self, "tag", whole[:_TAG_CHARS])

    @property
    def image(self) -> str:
        """The image's whole name."""
        return f"{self.repository}:{self.tag}"

    @property
    def labels(self) -> dict[str, str]:
        """The labels of the image."""
        return {ImageLabels.TAG: self.tag, **({ImageLabels.BASE: self.base} if self.base else {})}
