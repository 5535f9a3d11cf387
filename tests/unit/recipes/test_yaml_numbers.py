"""Test which texts of a YAML file are numbers."""

import pytest

from hpo.recipes.yaml_numbers import load_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001),
        ("1E-3", 0.001),
        ("2e4", 20_000.0),
        ("2e+4", 20_000.0),
        ("-2e4", -20_000.0),
        ("+.5e1", 5.0),
        ("1.e-2", 0.01),
        ("1.5e3", 1_500.0),
        ("0.1", 0.1),
        ("64_000", 64_000),
        ("12", 12),
        ("'1e-4'", "1e-4"),
        ("1e", "1e"),
        ("e4", "e4"),
        ("1e4x", "1e4x"),
        ("1e-4 # a comment", 0.0001),
        ("1e4.5", "1e4.5"),
        ("1 e4", "1 e4"),
        (".e4", ".e4"),
    ],
)
def test_a_number_is_what_people_write_as_one(text, value):
    read = load_yaml(text)

    assert (type(read), read) == (type(value), value)
