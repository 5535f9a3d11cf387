"""Test that the modules import only what stands below them, and that what must stay light stays light."""

import ast
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hpo

PACKAGE = Path(hpo.__file__).parent

# From the top down: a module imports only from its own folder and from what stands below that.
LAYERS = (
    "__main__",
    "cli",
    "launch",
    "worker",
    "steering",
    "results",
    "dashboard",
    "sampling",
    "study",
    "algorithms",
    "trial",
    "database",
    "training",
    "settings",
    "waiting",
    "recipes",
    "artifacts",
    "masking",
    "wording",
    "paths",
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
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def imported_names(tree):
    """List the dotted names that a tree imports, at its top or in a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(tree):
    """List the modules of this package that a tree imports."""
    return {module_of(name) for name in imported_names(tree) if name.split(".")[0] == "hpo"}


def module_of(name):
    """Find the module that a dotted name stands in: `hpo.study.Study` in `study`."""
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


def layer_of(name):
    return name.split(".")[0]


def test_every_module_has_a_place_in_the_layers():
    assert {layer_of(name) for name in MODULES} == set(LAYERS)


def test_a_module_imports_only_what_stands_below_it():
    upward = [
        f"{name_of(path)} imports {other}"
        for path in FILES
        for other in sorted(imports_of(TREES[path]))
        if LAYERS.index(layer_of(other)) < LAYERS.index(layer_of(name_of(path)))
    ]

    assert upward == []


def test_one_file_imports_what_is_private_in_optuna():
    private = {
        name_of(path) for path in FILES if any(re.match(r"optuna\b.*\._", n) for n in imported_names(TREES[path]))
    }

    assert private == {"database.optuna_tables"}


def test_the_database_alone_speaks_sql():
    speaking = {
        name_of(path) for path in FILES if any(re.match(r"sqlalchemy\b", n) for n in imported_names(TREES[path]))
    }

    assert {layer_of(name) for name in speaking} == {"database"}


def test_no_import_goes_round_in_a_circle():
    graph = {}
    for path in FILES:
        graph.setdefault(name_of(path), set()).update(imports_of(TREES[path]) - {name_of(path)})

    assert set(TopologicalSorter(graph).static_order()) == MODULES


def test_the_view_knows_records_by_their_types_only():
    assert imports_of(runtime_tree(PACKAGE / "cli" / "view.py")) == {"wording"}


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
    "read_own_test": {"results.test_split", "training.tensor_file"},
    "test_images": {"training.tensor_file"},
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
        for name in found.keys() & set(names_in(TREES[path])):
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
    knowing = {layer_of(name_of(path)) for path in FILES if "results.benchmark" in imports_of(runtime_tree(path))}

    assert knowing <= {"cli", "results"}


def test_nothing_but_the_test_split_names_a_file_of_test_images():
    naming = {name_of(path) for path in FILES if any(map(leads_to_test_images, ast.walk(TREES[path])))}

    assert naming == {"results.test_split"}


def leads_to_test_images(node):
    match node:
        case ast.Constant(value=str(text)):
            return "t10k" in text or "test_batch" in text
        case ast.Attribute(attr=name):
            return name == "test_list"
        case ast.keyword(arg="train", value=ast.Constant(value=False)):
            return True
    return False
