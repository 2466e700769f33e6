"""Strict construction: every problem has a path, near misses a suggestion, and nothing is ignored."""

import math

import pytest
from torch import nn

from hf_kd.losses import LOSSES
from hf_kd.registry import ConfigError, accepted_arguments, build, check_number, prefixed, suggestion
from hf_kd.temperatures import TEMPERATURES


class Lamp:
    """A component with every kind of argument."""

    def __init__(self, watts, *, colour="white", num_labels=None):
        self.watts = check_number("Lamp", "watts", watts, "it shines.", low=0.0, low_open=True)
        self.colour, self.num_labels = colour, num_labels


class Socket:
    def __init__(self, lamp=None):
        self.lamp = build(TABLE, lamp, "lamp", kind="component") if lamp else None


TABLE = {"lamp": Lamp, "socket": Socket, "plain": nn.Identity}


def problems(spec, path="a.b", **options):
    with pytest.raises(ConfigError) as caught:
        build(TABLE, spec, path, kind="component", **options)
    return caught.value.problems


def test_builds_from_a_name_or_a_mapping():
    assert isinstance(build(TABLE, "socket", kind="component"), Socket)
    lamp = build(TABLE, {"name": "lamp", "watts": 5, "colour": "red"}, kind="component")
    assert (lamp.watts, lamp.colour) == (5.0, "red")


def test_spec_is_not_changed():
    """The resolved config is written beside the result after building."""
    spec = {"name": "lamp", "watts": 5}
    build(TABLE, spec, kind="component")
    assert spec == {"name": "lamp", "watts": 5}


def test_context_fills_only_what_is_accepted_and_unset():
    context = {"num_labels": 7, "watts": None, "volts": 3}
    assert build(TABLE, {"name": "lamp", "watts": 1}, kind="component", context=context).num_labels == 7
    assert (
        build(TABLE, {"name": "lamp", "watts": 1, "num_labels": 2}, kind="component", context=context).num_labels == 2
    )
    assert isinstance(build(TABLE, "socket", kind="component", context=context), Socket)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("lmap", "a.b.name: unknown component 'lmap'. Did you mean 'lamp'? Available: lamp, plain, socket."),
        ({"name": 3}, "a.b.name: unknown component 3. Available: lamp, plain, socket."),
        ({"name": {"x": 1}}, "a.b.name: unknown component {'x': 1}. Available: lamp, plain, socket."),
        ({"watts": 3}, "a.b: a component needs a `name`. Available: lamp, plain, socket."),
        (7, "a.b: expected the name of a component or a mapping with `name`, got 7. Available: lamp, plain, socket."),
        ({"name": "lamp"}, "a.b.watts: component 'lamp' needs this argument."),
        ({"name": "lamp", "watts": -1}, "a.b: `Lamp(watts=...)` must be a positive finite number, got -1: it shines."),
    ],
)
def test_problem_has_a_path_and_a_way_out(spec, expected):
    assert problems(spec) == [expected]


def test_paths_start_clean_without_a_prefix():
    assert problems(7, path="")[0].startswith("expected the name")
    assert problems("lmap", path="")[0].startswith("name: unknown")
    assert problems({"name": "lamp"}, path="") == ["watts: component 'lamp' needs this argument."]


def test_all_problems_of_a_level_are_reported_together():
    """One run per typo is how an afternoon goes by."""
    found = problems({"name": "lamp", "wats": 5, "color": "red"})
    assert [line.split(":")[0] for line in found] == ["a.b.wats", "a.b.color", "a.b.watts"]
    assert "Did you mean 'watts'?" in found[0]
    assert "Did you mean 'colour'?" in found[1]


def test_nested_problems_keep_the_whole_path():
    assert problems({"name": "socket", "lamp": {"name": "lamp", "watts": "x"}}) == [
        "a.b.lamp: `Lamp(watts=...)` must be a positive finite number, got 'x': it shines."
    ]


def test_config_error_is_a_value_error_with_one_line_per_problem():
    error = ConfigError(iter(["a: x", "b: y"]))
    assert isinstance(error, ValueError)
    assert str(error) == "a: x\nb: y"
    assert prefixed("c", error) == ["c.a: x", "c.b: y"]
    assert prefixed("", TypeError("z")) == ["z"]


def test_suggestion_is_silent_about_far_words():
    assert suggestion("zzz", ["alpha", "beta"]) == " Available: alpha, beta."
    assert suggestion("x", []) == " Available: none."


@pytest.mark.parametrize(
    ("value", "options", "error"),
    [
        (True, {}, TypeError),
        ("1", {}, TypeError),
        (None, {}, TypeError),
        ([1], {}, TypeError),
        (math.nan, {}, ValueError),
        (-math.inf, {}, ValueError),
        (0, {"low": 0.0, "low_open": True}, ValueError),
        (-0.1, {"low": 0.0}, ValueError),
        (1.1, {"low": 0.0, "high": 1.0}, ValueError),
        (2.5, {"low": 1, "whole": True}, ValueError),
        (math.inf, {"low": 1, "whole": True}, ValueError),
    ],
)
def test_check_number_refuses(value, options, error):
    with pytest.raises(error, match=r"^`Lamp\(watts=\.\.\.\)` must be .*, got .*: because\.$"):
        check_number("Lamp", "watts", value, "because.", **options)


@pytest.mark.parametrize(
    ("value", "options"), [(0, {"low": 0.0}), (1, {"low": 0.0, "high": 1.0}), (3.0, {"whole": True})]
)
def test_check_number_accepts_the_closed_ends(value, options):
    result = check_number("Lamp", "watts", value, "because.", **options)
    assert result == value
    assert isinstance(result, float)


@pytest.mark.parametrize("table", [TEMPERATURES, LOSSES], ids=["temperatures", "losses"])
def test_registry_keys_are_the_names_classes_carry(table):
    """A saved strategy is found again by its `name`."""
    assert {key: cls.name for key, cls in table.items()} == {key: key for key in table}


@pytest.mark.parametrize("cls", [*TEMPERATURES.values(), *LOSSES.values()], ids=lambda cls: cls.__name__)
def test_registered_classes_can_be_built_strictly(cls):
    """`**kwargs` in a constructor would swallow every typo."""
    assert cls.__doc__
    assert all(not name.startswith("_") for name in accepted_arguments(cls))
    with pytest.raises(TypeError):
        cls(no_such_argument=1)
