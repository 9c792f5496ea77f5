"""BLEU and chrF of single summaries through sacreBLEU: an example of a metric of your own.

Put the folder into the directory that GISTMILL_WORKER__METRICS_DIR names, install `evaluate` and `sacrebleu` beside the worker,
and ask for it: `gistmill evaluate ... --metrics rouge,sacre`. Each number that `_compute` returns becomes a measure: sacre_bleu
and sacre_chrf. Gistmill calls it pair by pair and does means, intervals and tests itself.
"""

import datasets
import evaluate
from sacrebleu.metrics import BLEU, CHRF


class Sacre(evaluate.Metric):
    """Sentence BLEU and chrF2 as fractions, like all scores of Gistmill; only texts for people show points."""

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Sentence BLEU and chrF2, 0 to 1.",
            citation="Post, Matt. A Call for Clarity in Reporting BLEU Scores. WMT 2018.",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _download_and_prepare(self, dl_manager):
        # A summary is one sentence or two: without the effective order most would have no 4-gram in common and score 0.
        self.scorers = {"bleu": BLEU(effective_order=True), "chrf": CHRF()}

    @property
    def signature(self):
        """What decides the figures. Gistmill puts it into the signature line of the evaluation."""
        for scorer in self.scorers.values():
            # sacreBLEU knows its signature once it has scored something.
            scorer.sentence_score("", [""])
        return "; ".join(f"{name}|{scorer.get_signature()}" for name, scorer in self.scorers.items())

    def _compute(self, predictions, references):
        pairs = list(zip(predictions, references, strict=True))
        return {
            name: sum(scorer.sentence_score(text, given).score for text, given in pairs) / len(pairs) / 100
            for name, scorer in self.scorers.items()
        }
