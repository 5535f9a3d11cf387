"""`hpo enqueue`: try a recipe of one's own next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpo.cli.options import JsonOption, StorageOption, StudyOption
from hpo.cli.output import print_json, say_who_trains
from hpo.errors import BadInput
from hpo.settings import DEFAULT_STORAGE

if TYPE_CHECKING:
    from hpo.database.storage import Storage
    from hpo.recipes.recipe import Recipe


def enqueue(
    params: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME=VALUE",
            help="Parameters of the search space, such as head=dense dropout=0.5. The sampler chooses the others.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The recipe.yaml of `hpo best --export`; its budget and seed do not count."),
    ] = None,
    trial: Annotated[
        str | None, typer.Option(metavar="STUDY:N", help="The recipe of a trial of another study in this storage.")
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Add a trial, rather than take the place of one that has not begun.")
    ] = False,
    study_name: StudyOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    json_output: JsonOption = False,
) -> None:
    """Let a study try your own recipe next.

    A recipe that a trial of the study has already is refused.
    """
    from hpo import steering
    from hpo import study as studies
    from hpo.database.storage import open_storage

    if sum(each is not None for each in (params or None, recipe, trial)) != 1:
        raise BadInput("give parameters such as dropout=0.5, or --recipe, or --trial, and only one of them")
    database = open_storage(storage)
    study = studies.load(database, study_name)
    given = _load(database, recipe, trial)
    enqueued, chosen = steering.enqueue(study, steering.parse_params(params or []) if given is None else given, add=add)
    if json_output:
        print_json({"study": study.name, "trial": enqueued.trial, "target": enqueued.target, "params": chosen})
        return
    shown = " ".join(f"{name}={_word(value)}" for name, value in chosen.items()) or "the base recipe"
    print(f"study {study.name}: trial {enqueued.trial} of {enqueued.target} is next: {shown}")
    say_who_trains(study)


def _load(storage: Storage, recipe: str | None, trial: str | None) -> Recipe | None:
    from hpo import steering
    from hpo.recipes.space_file import load_space

    if recipe is not None:
        return load_space(recipe).base_recipe
    return None if trial is None else steering.load_recipe(storage, trial)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
