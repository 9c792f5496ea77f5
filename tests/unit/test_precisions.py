"""int8 is offered where an engine runs it; what asks for more is refused before it is a job."""

from __future__ import annotations

from typing import Any

import pytest

from gistmill.errors import InvalidSpec
from gistmill.specs import parse_evaluate_spec, parse_experiment_spec, parse_spec

DATA: dict[str, Any] = {"dataset": "d", "precision": "int8"}
BEAMS, SAMPLING = {"num_beams": 2}, {"do_sample": True}


@pytest.mark.parametrize("generation", [BEAMS, SAMPLING])
def test_int8_is_for_greedy_decoding(generation: dict[str, Any]) -> None:
    assert parse_spec(DATA).precision == "int8"
    assert parse_spec(DATA | {"precision": "float32", "generation": generation}).precision == "float32"

    with pytest.raises(InvalidSpec, match="int8 is offered for greedy decoding only; leave beams and sampling out, or use"):
        parse_spec(DATA | {"generation": generation})


def test_every_system_of_an_evaluation_in_int8_is_greedy() -> None:
    assert parse_evaluate_spec(DATA | {"models": ["a", "b"]}).precision == "int8"

    with pytest.raises(InvalidSpec, match="int8"):
        parse_evaluate_spec(DATA | {"models": ["a", {"model": "b", "generation": BEAMS}]})
    with pytest.raises(InvalidSpec, match="int8"):
        parse_evaluate_spec(DATA | {"models": ["a", "job:j1"], "generation": SAMPLING})


def test_experiment_in_int8_compares_no_beams_and_no_sampling() -> None:
    assert parse_experiment_spec(DATA | {"kind": "experiment", "sweep": {}}).precision == "int8"

    with pytest.raises(InvalidSpec, match=r"int8.*unless sweep says others"):
        parse_experiment_spec(DATA | {"kind": "experiment"})
