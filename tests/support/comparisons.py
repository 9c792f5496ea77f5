"""A comparison of made-up figures, as the api answers with it."""

from __future__ import annotations

from gistmill.views import CaseView, ComparisonView, CostView, MeanView, PairView, SystemView

MEASURES = ["rouge1", "rougeLsum"]
# The F-measures of the notebook on its 1,500 test rows.
MEANS = {"original": (0.2334, 0.2015), "full": (0.4216, 0.3384), "base+lora@1": (0.4081, 0.3249)}
HALF = 0.01


def levels(middle: float) -> dict[str, tuple[float, float]]:
    """Return limits that grow with the level."""
    return {level: (middle - half, middle + half) for level, half in (("90", HALF / 2), ("95", HALF), ("99", 2 * HALF))}


def mean(score: float, *, cases: int = 500) -> MeanView:
    """Return a mean of many cases with its interval, or of one without."""
    if cases == 1:
        return MeanView(cases=1, fmeasure=score)
    return MeanView(
        cases=cases, precision=0.5, recall=0.25, fmeasure=score, low=score - HALF, high=score + HALF, levels=levels(score)
    )


def pair(system: str, baseline: str, measure: str, *, cases: int = 500) -> PairView:
    """Return the difference of two systems."""
    place = MEASURES.index(measure)
    delta = MEANS[system][place] - MEANS[baseline][place]
    known = {"wins": 400, "ties": 20, "losses": 80, "cases": cases, "delta": delta}
    if cases > 1:
        known |= {"low": delta - HALF, "high": delta + HALF, "levels": levels(delta), "p_value": 0.0002, "p_adjusted": 0.0006}
    return PairView(measure=measure, system=system, baseline=baseline, **known)


def comparison(*, cases: int = 500, **fields: object) -> ComparisonView:
    """Return a completed evaluation of three systems on two measures, over so many cases that were scored."""
    systems = [
        SystemView(name=name, scores={m: mean(score, cases=cases) for m, score in zip(MEASURES, scores, strict=True)})
        for name, scores in MEANS.items()
    ]
    systems[1].cost = CostView(training_s=3725.4, memory_bytes=3 * 2**30, trainable_parameters=247_577_856, artifact_bytes=999)
    systems[2].cost = CostView(training_s=42.04, trainable_parameters=3_538_944, total_parameters=251_116_800)
    names = list(MEANS)
    pairs = [
        pair(system, baseline, measure, cases=cases)
        for measure in MEASURES
        for system, baseline in ((names[1], names[0]), (names[2], names[0]), (names[2], names[1]))
    ]
    made = {
        "id": "job_1",
        "state": "completed",
        "dataset": "dialogsum",
        "dataset_digest": "d" * 64,
        "select": "[0:510]",
        "baseline": "original",
        "measures": MEASURES,
        "cases": cases + 10,
        "ended": cases + 10,
        "counts": {"scored": cases, "failed": 7, "example": 2, "trained": 1, "no_reference": 0},
        "systems": systems,
        "pairs": pairs,
        "signature": "rouge|v:0.1.2|refs:max|seed:0",
        "notes": ["full was trained on another prompt."],
    }
    return ComparisonView.model_validate(made | fields)


def case(**fields: object) -> CaseView:
    """Return a case with two references and the summaries of two systems, one of them missing."""
    made = {
        "cursor": "c1",
        "row": 3,
        "id": "test_3",
        "outcome": "scored",
        "dialogue": "Ann: hi\nBob: bye",
        "references": ["Ann greets Bob.", "They part."],
        "summaries": {"original": "Ann, Bob", "full": ""},
        "scores": {"original": {"rouge1": 0.5, "rougeLsum": 0.25}, "full": {"rouge1": 0.0}},
        "delta": -0.25,
    }
    return CaseView.model_validate(made | fields)
