"""Where the demo's job is: in `examples/digits` of a checkout, or where an installation has put it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Final

from prefect_launch.errors import NotFoundError

_PLACE: Final = "examples/digits"
_MAIN: Final = "train.py"


def example_folder() -> Path:
    """Return the folder of the job that trains on hand-written digits.

    Raises:
        NotFoundError: when it is in neither place.
    """
    checkout = Path(__file__).resolve().parents[2] / _PLACE
    if (checkout / _MAIN).is_file():
        return checkout
    for file in metadata.files("prefect-launch") or ():
        if str(file).endswith(f"share/prefect-launch/{_PLACE}/{_MAIN}"):
            return Path(str(file.locate())).resolve().parent
    raise NotFoundError(
        f"The example {_PLACE} is not there. It comes with the package: install prefect-launch again, or run the demo"
        " from a checkout of the project ('make demo')."
    )
