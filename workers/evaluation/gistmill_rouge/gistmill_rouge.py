"""The ROUGE of Gistmill as a metric module of Hugging Face `evaluate`, loaded by path and offline.

A thin shell: the figures are those of an evaluation, and those of `rouge_score`. Evaluate's own module called `rouge` returns a
median of random resamples when it aggregates; this one returns the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from workers.evaluation import rouge, rules, statistics

DESCRIPTION = "ROUGE-1, 2, L and Lsum as rouge_score defines them, computed by rouge-score-rs. rougeLsum splits at newlines."
INPUTS = """
Args:
    predictions: list of summaries.
    references: list of references, or of lists of references; of several the one with the best f-measure counts.
    rouge_types: names among rouge1, rouge2, rougeL and rougeLsum; all by default.
    use_aggregator: return means (the default) instead of lists.
    use_stemmer: compare word stems (Porter).
Returns:
    f-measures by name, 0 to 1.
"""
CITATION = "Lin, Chin-Yew. ROUGE: a Package for Automatic Evaluation of Summaries. Text Summarization Branches Out, 2004."


class GistmillRouge(evaluate.Metric):
    """ROUGE by the name `gistmill_rouge`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=[
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[str] | Sequence[Sequence[str]],
        rouge_types: Sequence[str] = rouge.MEASURES,
        use_aggregator: bool = True,
        use_stemmer: bool = False,
    ) -> dict[str, list[float]] | dict[str, float]:
        unknown = [name for name in rouge_types if name not in rouge.MEASURES]
        if unknown:
            raise ValueError(f"rouge_types has {unknown}; it can have {', '.join(rouge.MEASURES)}")
        allowed = [[given] if isinstance(given, str) else list(given) for given in references]
        texts = [text for text, given in zip(predictions, allowed, strict=True) for _ in given]
        scores = iter(rouge.score_pairs(texts, [one for given in allowed for one in given], stemming=use_stemmer))
        best = [rules.combine([next(scores) for _ in given], "max")[0] for given in allowed]
        values = {name: [case[name].fmeasure for case in best] for name in rouge_types}
        return {name: statistics.mean(np.array(column)) for name, column in values.items()} if use_aggregator else values
