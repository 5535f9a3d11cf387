"""Test the notes, line by line, and that optuna-dashboard finds them."""

import json
import shlex
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import get_args

import optuna
import optuna_dashboard
import pytest

from hpo import cli, study
from hpo.cli import run
from hpo.cli.data import data_settings
from hpo.database import storage
from hpo.database.note_attrs import NOTE_PIECE, figure_attrs, figure_path, find_figures, note_attrs, read_note
from hpo.recipes.recipe import Recipe, documented_runs
from hpo.recipes.schedule import Align
from hpo.recipes.space_file import load_space
from hpo.results.notes import continue_command, not_confirmed, study_note, trial_note, with_best
from hpo.settings import Augment, DatasetName, Precision, PrunerName, SamplerName, StudySettings, default_augment

SETTINGS = StudySettings(
    space={"name": "smooth_lr", "description": "All of it", "base": "smooth_lr", "search": {}},
    dataset="digits",
    split="0f0e",
    image_shape=(8, 8, 1),
    classes=10,
    augment="crop",
    iterations=640,
    seed=0,
    precision="fp32",
    sampler="tpe",
    pruner="asha",
    align="phase",
)
BASE = documented_runs()["smooth_lr"].recipe.at(iterations=640, seed=0)


@pytest.mark.parametrize("length", [0, 1, NOTE_PIECE, NOTE_PIECE + 1, 3 * NOTE_PIECE])
def test_optuna_dashboard_reads_the_note_of_a_study_and_of_a_trial(length):
    study = optuna.create_study()
    study.ask()
    [trial] = study.trials
    body = "".join(chr(ord("a") + index % 26) for index in range(length))

    for key, value in (note_attrs(body) | note_attrs(body[::-1], trial._trial_id)).items():
        study._storage.set_study_system_attr(study._study_id, key, value)

    assert optuna_dashboard.get_note(study) == body
    assert read_note(study._storage.get_study_system_attrs(study._study_id)) == (body, 1)
    assert optuna_dashboard.get_note(optuna.trial.Trial(study, trial._trial_id)) == body[::-1]


def test_optuna_finds_the_figure_among_the_artifacts_of_a_trial():
    study = optuna.create_study()
    trial = study.ask()

    for key, value in figure_attrs("0a1b").items():
        study._storage.set_trial_system_attr(trial._trial_id, key, value)

    [found] = optuna.artifacts.get_all_artifact_meta(trial)
    assert (found.artifact_id, found.filename, found.mimetype) == ("0a1b", "training and validation.png", "image/png")
    assert json.loads(study.trials[0].system_attrs["artifacts:0a1b"])["encoding"] is None
    assert find_figures(study.trials[0].system_attrs | {"artifacts:1": '{"artifact_id": "1", "filename": "a"}'}) == (
        "0a1b",
    )
    assert figure_path(3, 14, "0a1b") == "/artifacts/3/14/0a1b"


def test_the_note_of_a_study_says_what_it_is_and_how_to_continue_it():
    assert study_note("mine", SETTINGS, "smooth_lr").splitlines() == [
        "# mine",
        "",
        "Search space **smooth_lr** (All of it) around smooth_lr, which is trial 0.",
        "",
        "| | |",
        "| --- | --- |",
        "| data set | digits; accuracies are measured on its validation split |",
        "| budget of a trial | 640 iterations, fp32 |",
        "| sampler | tpe, seed 0 |",
        "| pruner | asha |",
        "",
        "**Intermediate values** are validation accuracies. Trials are compared in the same phase of their schedules, "
        "past the same fraction of it; a step is that point on the schedule of trial 0.",
        "",
        "**Best trial.** Not confirmed: the trial was picked on one seed, where luck may decide. "
        "`hpo confirm --study mine` trains the best recipes on further seeds.",
        "",
        "A trial's page has its note and its curves. To continue, or to extend with more trials:",
        "",
        "```",
        "hpo run --space smooth_lr --trials N --study mine --dataset digits --precision fp32",
        "```",
        "",
        "From another machine that reaches the storage and the artifacts:",
        "",
        "```",
        "hpo worker --study mine",
        "```",
    ]


@pytest.mark.parametrize("length", [0, 1, 3 * NOTE_PIECE])
def test_a_note_that_a_person_has_saved_is_read_as_optuna_dashboard_shows_it(length):
    study = optuna.create_study()
    assert read_note(study._storage.get_study_system_attrs(study._study_id)) == ("", 0)

    optuna_dashboard.save_note(study, "x" * 12 * NOTE_PIECE)
    optuna_dashboard.save_note(study, body := "".join(chr(ord("a") + index % 26) for index in range(length)))

    assert read_note(study._storage.get_study_system_attrs(study._study_id)) == (body, 2)


def test_the_line_on_the_best_trial_is_replaced_where_it_stands_and_nothing_else():
    note = study_note("mine", SETTINGS, "smooth_lr")

    changed = with_best(f"{note}\n\nof mine", "Trial 3 is confirmed.")

    assert changed == f"{note.replace(not_confirmed('mine'), 'Trial 3 is confirmed.')}\n\nof mine"
    assert "**Best trial.** Trial 3 is confirmed." in changed.splitlines()
    assert with_best(changed, not_confirmed("mine")) == f"{note}\n\nof mine"
    assert with_best("of mine\n", "Trial 3 is confirmed.") == "of mine\n"


def test_the_command_that_continues_a_study_names_what_is_not_the_default():
    other = replace(SETTINGS, iterations=64, seed=7, sampler="gp", pruner="none", align="iteration", precision="bf16")

    assert continue_command("mine", other, "my spaces/own.yaml") == (
        "hpo run --space 'my spaces/own.yaml' --trials N --study mine --dataset digits --precision bf16 "
        "--iterations 64 --sampler gp --pruner none --align iteration --seed 7"
    )


SHIPPED = replace(SETTINGS, space=load_space("smooth_lr").model_dump(mode="json", exclude_none=True))


SHAPES = {"cifar10": (32, 32, 3), "cifar100": (32, 32, 3), "fashion_mnist": (28, 28, 1), "digits": (8, 8, 1)}


def chosen_data(wanted, _data_dir, image_size, augment):
    """Describe a data set as if it were on this machine, photographs of somebody's own if it is not a known one."""
    assert image_size is None
    shape = SHAPES.get(wanted, (48, 64, 3))
    return SimpleNamespace(
        name=wanted,
        checksum=SETTINGS.split,
        image_shape=shape,
        classes="0123456789",
        augment=augment or default_augment(wanted, shape[2]),
    )


class ReachedStudy(Exception):
    """The end of a command's run, where it would create or continue its study."""


@pytest.fixture
def settings_of_command(monkeypatch):
    """Parse a command with the real command line, up to where it would create or continue its study."""

    def capture(_storage, name, settings, trials, note, **_ends):
        parsed.append((name, settings, trials, note))
        raise ReachedStudy

    def settings_of(command):
        parsed.clear()
        program, *arguments = shlex.split(command)
        assert program == "hpo"
        with pytest.raises(ReachedStudy):
            cli.app(arguments, standalone_mode=False)
        [(name, settings, trials, note)] = parsed
        assert (name, trials) == ("mine", 40)
        assert command.replace("--trials 40", "--trials N") in note.splitlines(), "the note is the same again"
        return settings

    parsed = []
    monkeypatch.setattr(run, "choose_data", chosen_data)
    monkeypatch.setattr(storage, "open_storage", lambda *_: None)
    monkeypatch.setattr(study, "continue_or_create", capture)
    return settings_of


def command_in_note(settings):
    [command] = [line for line in study_note("mine", settings, "smooth_lr").splitlines() if line.startswith("hpo run")]
    return command.replace("--trials N", "--trials 40")


@pytest.mark.parametrize("align", get_args(Align))
@pytest.mark.parametrize("pruner", get_args(PrunerName))
@pytest.mark.parametrize("sampler", get_args(SamplerName))
def test_the_command_in_a_note_continues_its_study_whatever_chooses_and_prunes(
    settings_of_command, sampler, pruner, align
):
    settings = replace(SHIPPED, sampler=sampler, pruner=pruner, align=align)

    assert settings_of_command(command_in_note(settings)) == settings


@pytest.mark.parametrize("augment", [None, *get_args(Augment)])
@pytest.mark.parametrize("dataset", [*get_args(DatasetName), "holiday-photos"])
def test_the_command_in_a_note_continues_its_study_on_any_data(settings_of_command, dataset, augment):
    data = data_settings(chosen_data(dataset, None, None, augment))
    settings = replace(SHIPPED, **data, iterations=1_000)

    assert settings_of_command(command_in_note(settings)) == settings


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_the_command_in_a_note_continues_its_study_whatever_else_was_set(settings_of_command, dataset):
    data = data_settings(chosen_data(dataset, None, None, None))
    for precision, iterations, seed in product(get_args(Precision), (64, 640, 64_000, 100_000), (0, 1, 2**31 - 1)):
        settings = replace(SHIPPED, **data, precision=precision, iterations=iterations, seed=seed)

        assert settings_of_command(command_in_note(settings)) == settings


def test_the_note_of_a_trial_shows_its_recipe_beside_the_base_recipe():
    recipe = Recipe.from_dict(
        BASE.to_dict() | {"head": "linear", "early_stopping": 7_020, "values": [0.1, 0.05, 0.01, 0.002]}
    )
    attrs = {"outcome": "complete", "iterations": 640, "validation loss": 0.12345, "standard error": 0.00921}

    assert trial_note(recipe, BASE, attrs, "median", "/artifacts/1/2/0a").splitlines() == [
        "**Complete.**",
        "",
        "Validation loss 0.1235, standard error of the accuracy 0.0092.",
        "",
        "![Loss and accuracy over the iterations](/artifacts/1/2/0a)",
        "",
        "| recipe | this trial | trial 0 |",
        "| --- | --- | --- |",
        "| head | **linear** | dropout |",
        "| dropout | **0** | 0.5 |",
        "| shortcut norm | yes | yes |",
        "| depth | 20 | 20 |",
        "| boundaries | 20,000, 32,000, 56,000 | 20,000, 32,000, 56,000 |",
        "| learning rates | **0.1, 0.05, 0.01, 0.002** | 0.1, 0.02, 0.005, 0.001 |",
        "| patience of early stopping | **7,020** | none |",
        "| batch size | 128 | 128 |",
        "| momentum | 0.9 | 0.9 |",
        "| nesterov | no | no |",
        "| weight decay | 0 | 0 |",
        "| label smoothing | 0 | 0 |",
        "| iterations | 640 | 640 |",
        "| seed | 0 | 0 |",
        "",
        "Boundaries and patience are in reference iterations (of 64,000).",
    ]


@pytest.mark.parametrize(
    ("outcome", "first_line"),
    [
        (
            "pruned at iteration 40",
            "**Pruned at iteration 40.** The median pruner ended it: its best accuracy so far was below the median of "
            "the earlier trials, compared at the same point.",
        ),
        (
            "stopped early at iteration 90, weights of iteration 20",
            "**Stopped early at iteration 90, weights of iteration 20.** The validation loss had not improved for "
            "the recipe's patience.",
        ),
        (
            "diverged: the loss was not finite at iteration 10",
            "**Diverged: the loss was not finite at iteration 10.**",
        ),
        (
            "waiting at rung 1 (iteration 20)",
            "**Waiting at rung 1 (iteration 20).** It continues once it is in the best third of the trials there, "
            "and is pruned if the study ends first.",
        ),
        ("failed: RuntimeError: no memory (train.py:1)", "**Failed: RuntimeError: no memory (train.py:1).**"),
    ],
)
def test_the_note_of_a_trial_begins_with_how_it_ended_and_why(outcome, first_line):
    assert trial_note(BASE, BASE, {"outcome": outcome}, "median").splitlines()[0] == first_line


@pytest.mark.parametrize("pruner", ["median", "asha", "asha-stop", "hyperband", "wilcoxon"])
def test_every_pruner_has_a_reason(pruner):
    assert f"The {pruner} pruner ended it: " in trial_note(BASE, BASE, {"outcome": "pruned at iteration 4"}, pruner)


def test_a_trial_that_failed_before_it_had_a_recipe_has_a_note_all_the_same():
    assert trial_note(None, BASE, {"outcome": "failed: no"}, "median") == "**Failed: no.**\n"


HOSTILE = "<script>alert(1)</script>\n<img src=x onerror=alert(2)> & co"


@pytest.mark.parametrize(
    "note",
    [
        study_note("mine", replace(SETTINGS, space=SETTINGS.space | {"description": HOSTILE}), "smooth_lr"),
        study_note("mine", replace(SETTINGS, space=SETTINGS.space | {"name": HOSTILE}), "smooth_lr"),
        study_note("mine", replace(SETTINGS, dataset=HOSTILE), "smooth_lr").split("To continue")[0],
        trial_note(None, BASE, {"outcome": f"failed: {HOSTILE}"}, "none"),
    ],
    ids=["description", "name of a space", "data set", "outcome"],
)
def test_html_that_somebody_wrote_is_text_in_a_note(note):
    assert "<" not in note
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &lt;img src=x onerror=alert(2)&gt; &amp; co" in note
