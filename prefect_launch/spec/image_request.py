"""What a job's image is wished to be, as the plan of a run says it: no builder, no machine, no registry."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class BuildRequest(BaseModel):
    """What the spec and the job say of the image that the job's code runs in."""

    model_config = ConfigDict(frozen=True)

    entry_point: tuple[str, ...] = Field(default=(), description="The run's command; it is not baked into the image.")
    dockerfile: str | None = Field(default=None, description="A Dockerfile in the build context, by its relative path.")
    build_context: str | None = Field(default=None, description="Folder of the code that the image is built in.")
    python_version: str | None = Field(default=None, description='Such as "3.11".')
    base_image: str | None = Field(default=None, description="In the place of the builder's own, for accelerators.")
    user_id: int | None = Field(default=None, description="Whom the job runs as; None: as the builder is configured.")
