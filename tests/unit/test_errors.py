"""Test that the tree of errors is the one that is drawn."""

import re

from hpo import errors
from hpo.errors import HpoError

NODE = re.compile(r"(?P<indent>(?:│   )*)(?:[├└]── )?(?P<name>\w+) +(?:exit code (?P<exit_code>\d+))?")


def drawn_tree():
    """Parse the tree in the docstring of `hpo.errors` into (name, parent, exit code)."""
    path: list[tuple[str, int]] = []
    for line in (errors.__doc__ or "").splitlines()[2:]:
        node = NODE.match(line)
        assert node is not None, line
        depth = len(node["indent"]) // 4 + ("── " in line)
        path = path[:depth]
        parent, inherited = path[-1] if path else (None, None)
        exit_code = inherited if node["exit_code"] is None else int(node["exit_code"])
        path.append((node["name"], exit_code))
        yield node["name"], parent, exit_code


def subclass_tree(cls=HpoError, parent=None):
    yield cls.__name__, parent, cls.exit_code
    for child in cls.__subclasses__():
        yield from subclass_tree(child, cls.__name__)


def test_the_docstring_draws_every_error_with_its_parent_and_exit_code():
    assert list(drawn_tree()) == list(subclass_tree())
