"""Commands `prefect-launch item outputs`, `download` and `open`: the files that an item has left, and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefect_launch.cli.item_view import find, outputs_of
from prefect_launch.cli.options import ItemId, JsonOption
from prefect_launch.cli.output import Column, print_details, print_json, print_table
from prefect_launch.cli.process import connected
from prefect_launch.core.terminal import printable


def outputs(item_id: ItemId, json: JsonOption = False) -> None:
    """List the files that an item has left, with their sizes, and the values of its outputs.json."""
    from prefect_launch.core.units import format_size

    run = find(connected(), item_id)
    item = run.item
    files, values = run.files(), outputs_of(run, item)
    if json:
        listed = [{"path": path, "size": size} for path, size in files.items()]
        print_json({"id": run.id, "name": run.name, "outputs": values, "files": listed})
        return
    rows = [(path, format_size(size)) for path, size in files.items()]
    print_table((Column("FILE", gives_way=True), Column("SIZE", right=True)), rows, empty="")
    typer.echo(f"\n{_amount(list(files.values()))}.")
    if values:
        print_details([("outputs", values)])


def download(
    item_id: ItemId,
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="[PATTERN]", help="Only these files, as in .gitignore: '*.pt', 'checkpoints/**'."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Where to. Default: a folder of the item's name."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", metavar="", help="Replace files that are there and differ.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Copy the files that an item has left into a folder."""
    from prefect_launch.client.item_files import default_folder

    run = find(connected(), item_id)
    folder = default_folder(run.name) if folder is None else folder
    files = run.download(pattern, folder, overwrite=overwrite)
    sizes = [file.stat().st_size for file in files]
    if json:
        print_json(
            {
                "id": run.id,
                "name": run.name,
                "folder": str(folder),
                "files": [str(file) for file in files],
                "bytes": sum(sizes),
            }
        )
        return
    typer.echo(f"{_amount(sizes)} in the folder {printable(str(folder))}.")


def open_(item_id: ItemId) -> None:
    """Open an item's page in the browser; print its address where there is none."""
    import webbrowser

    url = find(connected(), item_id).url
    if not webbrowser.open(url):
        typer.echo("There is no browser here. The page is:", err=True)
        typer.echo(url)


def _amount(sizes: list[int]) -> str:
    from prefect_launch.core.units import counted, format_size

    return f"{counted(len(sizes), 'file')}, {format_size(sum(sizes))}"
