"""Test that the modules import only what stands below them, and that what must stay light stays light."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hpo

PACKAGE = Path(hpo.__file__).parent

# From the top down, as in DESIGN.md.
ORDER = (
    "__main__",
    "cli",
    "cli.benchmark",
    "cli.studies",
    "cli.run",
    "cli.results",
    "cli.catalog",
    "cli.driving",
    "cli.options",
    "cli.output",
    "cli.progress",
    "cli.view",
    "dashboard.server",
    "dashboard.access",
    "dashboard",
    "launch.ray",
    "launch.ray_cluster",
    "launch.local",
    "launch.supervise",
    "launch.worker_actor",
    "launch.process",
    "launch",
    "worker.rotation",
    "worker.verify",
    "worker.work",
    "worker.supervisor",
    "worker.publish",
    "worker.registration",
    "worker.stop",
    "worker.device",
    "worker",
    "results.report",
    "results.report.pages",
    "results.report.charts",
    "results.report.facts",
    "results.report.tree",
    "results.report.document",
    "results.benchmark",
    "results.test_split",
    "results.export",
    "results.significance",
    "results.notes",
    "results.figures",
    "results.formatting",
    "results",
    "study",
    "algorithms",
    "trial.objective",
    "trial.trajectory",
    "trial.checkpoints",
    "trial.segments",
    "trial",
    "training.train",
    "training.model",
    "training.datasets",
    "training.data",
    "training",
    "recipes.space_file",
    "recipes.space",
    "recipes.comparison",
    "database.removal",
    "database.study_state",
    "database.queue",
    "database.studies",
    "database.workers",
    "database.checkpoint_index",
    "database.parking",
    "database.overview",
    "database.storage",
    "database.optuna_view",
    "database.migrations",
    "database.schema",
    "database.retry",
    "database.tables",
    "database.attempt",
    "database.note_attrs",
    "database.optuna_tables",
    "database",
    "artifacts",
    "settings",
    "recipes.schedule",
    "recipes.recipe",
    "recipes",
    "errors",
    "__init__",
)

HEAVY = ("torch", "torchvision", "optuna", "sqlalchemy", "alembic", "sklearn", "scipy", "numpy", "pandas", "matplotlib")


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[:2] == ("database", "migrations"):
        return "database.migrations"
    return ".".join(parts).removesuffix(".__init__")


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {name_of(path) for path in FILES}


def imports_of(tree):
    """List the modules of this package that a tree imports, at its top or in a function."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {module_of(name) for name in names if name.split(".")[0] == "hpo"}
    return found


def module_of(name):
    """Find the module that a dotted name stands in: `hpo.queue.Counts` in `queue`."""
    parts = name.split(".")[1:]
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in MODULES:
            return ".".join(parts[:length])
    return "__init__"


def runtime_tree(path):
    """Parse a file without what only type checkers read."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    return tree


def test_every_module_has_a_place_in_the_order():
    assert sorted(MODULES - set(ORDER)) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_imports_only_what_stands_below_it(path):
    name = name_of(path)
    below = ORDER[ORDER.index(name) + 1 :]

    assert sorted(imports_of(ast.parse(path.read_text())) - {*below, name}) == []


def test_no_import_goes_round_in_a_circle():
    graph = {}
    for path in FILES:
        graph.setdefault(name_of(path), set()).update(imports_of(ast.parse(path.read_text())) - {name_of(path)})

    assert set(TopologicalSorter(graph).static_order()) == MODULES


def test_the_view_knows_records_by_their_types_only():
    assert imports_of(runtime_tree(PACKAGE / "cli" / "view.py")) == set()


@pytest.mark.parametrize("module", ["hpo.cli", "hpo.cli.view", "hpo.recipes.schedule", "hpo.settings"])
def test_what_answers_at_once_loads_nothing_heavy(module):
    script = f"import {module}, json, sys; print(json.dumps(sorted(sys.modules)))"

    loaded = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)

    assert module in loaded
    assert [name for name in loaded if name in HEAVY] == []


def test_the_help_loads_nothing_heavy_either():
    script = (
        "import json, sys; sys.argv = ['hpo', 'run', '--help']\n"
        "from hpo.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, file=sys.stderr)\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)

    code, loaded = done.stderr.splitlines()
    assert code == "0"
    assert [name for name in json.loads(loaded) if name in HEAVY] == []


# What leads to test images, and who may name it. The digits come in one piece, which `datasets` has to cut.
TEST_SPLITS = {
    "test_list": {"results.test_split"},
    "FASHION_MNIST_TEST": {"results.test_split"},
    "load_test_split": {"results.benchmark", "results.test_split"},
    "read_digits": {"results.test_split", "training.datasets"},
    "load_digits": {"training.datasets"},
    "DIGITS_TEST_SHARE": {"training.datasets"},
}


def names_in(tree):
    """List every name that a tree defines, imports, uses or looks up by text."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.FunctionDef(name=name) | ast.alias(name=name):
                yield name
            case ast.Attribute(attr=name) | ast.Constant(value=str(name)):
                yield name


def test_only_the_benchmark_can_read_a_test_split():
    found = {name: set() for name in TEST_SPLITS}
    for path in FILES:
        for name in found.keys() & set(names_in(ast.parse(path.read_text()))):
            found[name].add(name_of(path))

    assert found == TEST_SPLITS


def test_the_search_takes_the_part_of_the_digits_that_is_not_for_the_test():
    tree = ast.parse((PACKAGE / "training" / "datasets.py").read_text())
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "read_digits"]
    first = [
        node for node in ast.walk(tree) if isinstance(node, ast.Subscript) and ast.unparse(node) == "read_digits()[0]"
    ]

    assert (len(used), len(first)) == (1, 1)


def test_only_the_command_line_and_the_report_know_the_benchmark():
    knowing = {name_of(path) for path in FILES if "results.benchmark" in imports_of(runtime_tree(path))}

    assert {name for name in knowing if name.split(".")[0] not in ("cli", "results")} == set()


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p) != "results.test_split"], ids=name_of)
def test_nothing_but_the_benchmark_names_a_file_of_test_images(path):
    tree = ast.parse(path.read_text())
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    attributes = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    not_train = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and (node.arg, ast.unparse(node.value)) == ("train", "False")
    ]

    assert [text for text in texts if "t10k" in text or "test_batch" in text] == []
    assert "test_list" not in attributes
    assert not_train == []
