"""Commands on networks, search spaces and data sets."""

from __future__ import annotations

from typing import Annotated

import typer

from hpo.cli.options import DataOption, FetchableDataset, HeadChoice, JsonOption
from hpo.cli.output import print_json, show
from hpo.errors import BadInput, RecipeError
from hpo.paths import expand_path
from hpo.settings import default_data_dir


def model(
    head: Annotated[HeadChoice, typer.Option(help="Layers after the last residual block.")] = HeadChoice.linear,
    shortcut_norm: Annotated[
        bool, typer.Option("--shortcut-norm", help="Use BatchNorm on the padded shortcuts.")
    ] = False,
    depth: Annotated[
        int, typer.Option(metavar="N", help="Number of layers: 20, 32, 44, 56, 110 or another 6n + 2.")
    ] = 20,
    json_output: JsonOption = False,
) -> None:
    """Print the network's layers and parameter counts."""
    from dataclasses import asdict

    import torch

    from hpo.cli import view
    from hpo.recipes.recipe import check_field
    from hpo.training.model import ResNet, count_parameters, layer_table

    try:
        check_field("depth", depth)
    except RecipeError as error:
        raise BadInput(f"--depth {error.problem}") from error
    network = ResNet(
        channels=3,
        classes=10,
        head=head.value,
        dropout=0.5,
        shortcut_norm=shortcut_norm,
        depth=depth,
        generator=torch.Generator(),
    )
    rows, counts = layer_table(network, (32, 32, 3)), count_parameters(network)
    if json_output:
        print_json({"layers": [asdict(row) for row in rows], "params": asdict(counts)})
    else:
        show(view.layers(rows, counts))


def spaces_list(json_output: JsonOption = False) -> None:
    """List the shipped search spaces."""
    from hpo.cli import view
    from hpo.recipes.shipped import list_shipped
    from hpo.recipes.space_file import load_space

    shipped = [load_space(name) for name in list_shipped()]
    entries = [(s.name, s.base_title, len(s.distributions()), s.description) for s in shipped]
    if json_output:
        print_json([dict(zip(("name", "base", "parameters", "description"), e, strict=True)) for e in entries])
    else:
        show(view.spaces(entries))


def spaces_show(name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a shipped space.")]) -> None:
    """Print a shipped space's YAML."""
    from hpo.recipes.shipped import shipped_dir
    from hpo.recipes.space_file import load_space

    load_space(name)
    path = shipped_dir() / f"{name}.yaml"
    print((path if path.is_file() else expand_path(name)).read_text("utf-8"), end="")


def spaces_check(file: Annotated[str, typer.Argument(metavar="FILE", help="YAML file of a space.")]) -> None:
    """Check a space file.

    An error names file, line, key, bad value and what is allowed.
    """
    from hpo.recipes.space_file import load_space

    space = load_space(file)
    print(f"{file}: valid: {space.name}, {len(space.distributions())} parameters around {space.base_title}")


def spaces_schema() -> None:
    """Print the JSON Schema of space files."""
    from hpo.recipes.space_file import json_schema

    print_json(json_schema())


def data_fetch(
    name: Annotated[FetchableDataset, typer.Argument(help="The data set.")], data_dir: DataOption = None
) -> None:
    """Download a data set if it is missing."""
    from hpo.training.datasets import fetch_dataset

    folder = data_dir or default_data_dir()
    fetch_dataset(name.value, folder)
    print(f"{name.value}: complete in {folder}")


def data_check(data_dir: DataOption = None, json_output: JsonOption = False) -> None:
    """Show which data sets are on this machine."""
    from hpo.training.datasets import list_states

    found = list_states(data_dir or default_data_dir())
    states = {each.title: f"{each.state}: {each.detail}" for each in found}
    if json_output:
        print_json(states)
    else:
        for title, state in states.items():
            print(f"{title}: {state}")
    if any(each.state == "damaged" for each in found):
        raise typer.Exit(BadInput.exit_code)
