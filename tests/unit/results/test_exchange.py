import csv
import io
import sys
from datetime import UTC, datetime

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from hpo.errors import BadInput
from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import CurvePoint
from hpo.results.exchange import mlflow, tables, tensorboard
from hpo.results.exchange.tables import curves_csv, trials_csv
from hpo.results.exchange.tensorboard import hyperparameters
from hpo.results.exchange.trials import ExportedTrial

RECIPE = Recipe(
    head="dropout",
    dropout=0.5,
    shortcut_norm=True,
    boundaries=(20000, 40000),
    values=(0.05, 0.02, 0.005),
    iterations=64,
)
POINTS = (
    CurvePoint(iteration=32, train_loss=2.0, train_accuracy=None, val_loss=2.5, val_accuracy=0.25),
    CurvePoint(iteration=64, train_loss=1.0, train_accuracy=0.75, val_loss=1.5, val_accuracy=0.5),
)
COMPLETE = ExportedTrial(
    number=3,
    state="complete",
    val_accuracy=0.5,
    started=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    ended=datetime(2026, 1, 2, 3, 4, 35, tzinfo=UTC),
    params={"head": "dropout", "dropout": 0.5},
    attrs={"iterations": 64, "numerics": {"threads": 1}},
    recipe=RECIPE,
    curve=POINTS,
)
FAILED = ExportedTrial(
    number=12, state="fail", val_accuracy=None, started=None, ended=None, params={}, attrs={}, recipe=None, curve=()
)


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_a_row_has_what_a_trial_was_and_nothing_where_it_was_not():
    complete, failed = read(trials_csv([COMPLETE, FAILED]))

    assert complete | failed == dict.fromkeys(complete, "") | {"trial": "12", "state": "fail"}
    assert {name: complete[name] for name in ("trial", "state", "val_accuracy", "started", "duration_s")} == {
        "trial": "3",
        "state": "complete",
        "val_accuracy": "0.5",
        "started": "2026-01-02T03:04:05+00:00",
        "duration_s": "30.0",
    }
    assert (complete["recipe.boundaries"], complete["recipe.early_stopping"]) == ("20000 40000", "")
    assert (complete["attrs.iterations"], complete["attrs.numerics"]) == ("64", '{"threads": 1}')


def test_columns_of_one_group_stand_together_whichever_trial_had_them_first():
    [header, *_] = trials_csv([FAILED, COMPLETE]).splitlines()

    groups = [name.partition(".")[0] for name in header.split(",") if "." in name]
    assert groups == sorted(groups, key=["params", "recipe", "attrs"].index)


def test_every_evaluation_is_a_row_of_the_curves():
    assert curves_csv([FAILED, COMPLETE]).splitlines() == [
        "trial,iteration,train_loss,train_accuracy,val_loss,val_accuracy",
        "3,32,2.0,,2.5,0.25",
        "3,64,1.0,0.75,1.5,0.5",
    ]


def test_hyperparameters_are_numbers_truth_values_and_text():
    values = hyperparameters(COMPLETE)

    assert (values["dropout"], values["shortcut_norm"], values["boundaries"]) == (0.5, True, "20000 40000")
    assert "early_stopping" not in values
    assert {type(value) for value in values.values()} <= {bool, int, float, str}


def test_the_tables_stand_in_a_new_folder_with_a_figure_of_each_trial_that_was_evaluated(tmp_path):
    tables.write([COMPLETE, FAILED], tmp_path / "out")

    assert (tmp_path / "out" / "trials.csv").read_text() == trials_csv([COMPLETE, FAILED])
    assert (tmp_path / "out" / "curves.csv").read_text() == curves_csv([COMPLETE])
    [figure] = (tmp_path / "out" / "figures").iterdir()
    assert (figure.name, figure.read_bytes()[:4]) == ("trial-0003.png", b"\x89PNG")


def test_event_files_hold_curve_figure_and_result_of_each_trial(tmp_path):
    tensorboard.write([COMPLETE, FAILED], tmp_path / "out")

    runs = {path.name: EventAccumulator(str(path)).Reload() for path in (tmp_path / "out").iterdir()}
    assert runs.keys() == {"trial-0003", "trial-0012"}
    complete, failed = runs["trial-0003"], runs["trial-0012"]
    assert [(e.step, e.value) for e in complete.Scalars("val_accuracy")] == [(32, 0.25), (64, 0.5)]
    assert [(e.step, e.value) for e in complete.Scalars("train_accuracy")] == [(64, 0.75)]
    assert [(e.step, e.value) for e in complete.Scalars("final/val_accuracy")] == [(64, 0.5)]
    assert complete.Images("figure")[0].encoded_image_string.startswith(b"\x89PNG")
    assert (failed.Tags()["scalars"], failed.Tags()["images"]) == ([], [])
    rows = [run.SummaryMetadata("_hparams_/session_start_info") for run in runs.values()]
    assert [row.plugin_data.plugin_name for row in rows] == ["hparams", "hparams"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # of its own code
def test_an_experiment_holds_one_run_per_trial_and_finds_its_figures(tmp_path):
    mlflow.write("mine", [COMPLETE, FAILED], tmp_path / "out")

    client = MlflowClient(f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    failed, complete = client.search_runs([experiment.experiment_id], order_by=["attributes.run_name DESC"])
    assert (failed.info.run_name, complete.info.run_name) == ("trial-0012", "trial-0003")
    assert (failed.info.status, complete.info.status) == ("FAILED", "FINISHED")
    assert (complete.data.params["head"], complete.data.params["boundaries"]) == ("dropout", "20000 40000")
    assert complete.info.end_time - complete.info.start_time == 30_000
    history = client.get_metric_history(complete.info.run_id, "val_accuracy")
    assert [(point.step, point.value) for point in history] == [(32, 0.25), (64, 0.5)]
    [figure] = client.list_artifacts(complete.info.run_id)
    assert (figure.path, figure.is_dir) == ("trial-0003.png", False)
    assert client.list_artifacts(failed.info.run_id) == []


@pytest.mark.parametrize(
    ("module", "write"),
    [
        ("torch.utils.tensorboard.writer", lambda path: tensorboard.write([COMPLETE], path)),
        ("mlflow", lambda path: mlflow.write("mine", [COMPLETE], path)),
        ("mlflow", lambda _path: mlflow.send("mine", [COMPLETE], "http://127.0.0.1:9")),
    ],
)
def test_a_tool_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch, module, write):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BadInput, match=r"needs `pip install 'hpo-trajectories\[(tensorboard|mlflow)\]'`"):
        write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_named_without_its_password():
    with pytest.raises(BadInput) as refused:
        mlflow.send("mine", [COMPLETE], "http://anna:S3cret@127.0.0.1:9")
    assert str(refused.value).startswith("--out http://anna:***@127.0.0.1:9: ")
    assert "S3cret" not in str(refused.value)
