"""Metrics of others: `evaluate` modules in child processes, good ones and bad ones, and our ROUGE as such a module."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from gistmill.errors import JobEnded, MetricFailed, Stopped, UnknownMetric
from tests.support.servers import wait_until
from workers.evaluation import modules
from workers.evaluation.metrics import Metric, load_metric, load_metrics
from workers.evaluation.modules import ModuleMetric
from workers.evaluation.rouge import MEASURES, Score, score_pairs

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples" / "metrics"
OURS = REPOSITORY / "workers" / "evaluation"

TEXTS = ["the cat sat on the mat", "", "Anna sends the reports.\nBen thanks her.", "日本", "running dogs"]
REFERENCES = ["a cat sat on a mat", "nobody", "Ben thanks Anna.\nAnna sent the report.", "日本", "the dog runs"]

# Does what the prediction says. On the trial pair, and on all other texts, it returns what it always should.
MOODY = """
import os
import sys
import time

import datasets
import evaluate
import numpy as np


class Moody(evaluate.Metric):
    signature = "moody 7"

    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        mood = predictions[0]
        if mood == "raise":
            raise RuntimeError("I will not score " + references[0])
        if mood == "die":
            sys.stderr.write("fatal: I am dying\\n")
            os._exit(3)
        if mood == "hang":
            time.sleep(3600)
        if mood == "print":
            print('{"numbers": {"words": 99}}' * 100_000, flush=True)
        if mood == "list":
            return [1.0]
        if mood == "no numbers":
            return {"words": "many", "parts": [1, 2]}
        if mood == "nan":
            return {"words": float("nan"), "same": 1}
        if mood == "others":
            return {"words": 1.0}
        if mood == "environment":
            return {"words": sum(name.startswith("GISTMILL_") for name in os.environ), "same": "torch" in sys.modules}
        return {
            "words": np.float32(len(predictions[0].split())),
            "same": int(predictions == references),
            "parts": [1, 2],
            "note": "kept out",
        }
"""


class Asked:
    """Progress that counts, and a reason to stop that comes after some looks."""

    def __init__(self, *, looks: int = 10**9, reason: Stopped | None = None) -> None:
        self.ticks = 0
        self.looks = looks
        self.said = reason

    def tick(self) -> None:
        self.ticks += 1

    def reason(self) -> Stopped | None:
        self.looks -= 1
        return self.said if self.looks < 0 else None


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of metrics with a moody one and some that cannot be loaded."""
    directory = tmp_path_factory.mktemp("metrics")
    write(directory, "moody", MOODY)
    write(directory, "broken", "raise RuntimeError('no model of mine is here')\n")
    write(directory, "needy", "import package_that_nobody_has\n")
    write(directory, "empty", "")
    return directory


@pytest.fixture(scope="module")
def moody(directory: Path) -> Iterator[Metric]:
    """The moody metric, loaded once for all tests; a test that makes it die pays for another start."""
    metric = load_metric("moody", stemming=True, directory=directory)
    yield metric
    metric.close()


def write(directory: Path, name: str, code: str) -> Path:
    path = directory / name / f"{name}.py"
    path.parent.mkdir()
    path.write_text(code, encoding="utf-8")
    return path


def pid_of(metric: Metric) -> int:
    assert isinstance(metric, ModuleMetric)
    assert metric._process is not None
    assert metric._process.pid is not None
    return metric._process.pid


def is_alive(pid: int) -> bool:
    """Tell whether the process runs; one that waits to be reaped by its new parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_rouge_is_built_in() -> None:
    metric = load_metric("rouge", stemming=True, directory=None)
    asked = Asked()
    assert metric.score(TEXTS, REFERENCES, progress=asked) == score_pairs(TEXTS, REFERENCES, stemming=True)
    assert (metric.name, metric.measures, asked.ticks) == ("rouge", MEASURES, 1)
    assert metric.signature.startswith("rouge_score 0.1.2 through rouge-score-rs ")
    assert metric.signature.endswith(", with stemming, rougeLsum splits at newlines")
    assert load_metric("rouge", stemming=False, directory=None).signature.endswith(
        ", without stemming, rougeLsum splits at newlines"
    )


def test_each_number_becomes_a_measure_and_each_pair_has_its_own(moody: Metric) -> None:
    asked = Asked()
    scores = moody.score(["one two three", "same", ""], ["other", "same", ""], progress=asked)
    assert moody.measures == ("moody_words", "moody_same")
    assert [list(pair.values()) for pair in scores] == [
        [Score(None, None, 3.0), Score(None, None, 0.0)],
        [Score(None, None, 1.0), Score(None, None, 1.0)],
        [Score(None, None, 0.0), Score(None, None, 1.0)],
    ]
    assert asked.ticks == 3
    assert moody.score([], []) == []


def test_signature_names_the_code_and_what_the_module_says_of_itself(moody: Metric, directory: Path, tmp_path: Path) -> None:
    other = modules._digest(write(tmp_path, "moody", MOODY.replace("many", "few")))
    assert moody.signature == f"moody {modules._digest(directory / 'moody' / 'moody.py')[:12]} (moody 7)"
    assert other[:12] not in moody.signature


def test_module_sees_no_settings_of_the_worker_and_no_torch(moody: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GISTMILL_DATABASE__URL", "postgresql://user:secret@host/db")
    moody.close()
    (scores,) = moody.score(["environment"], [""])
    assert [score.fmeasure for score in scores.values()] == [0.0, 0.0]


def test_what_a_module_prints_is_no_answer_and_blocks_nothing(moody: Metric) -> None:
    (scores,) = moody.score(["print"], [""])
    assert scores["moody_words"].fmeasure == 1.0


@pytest.mark.parametrize(
    ("mood", "said"),
    [
        ("list", "it returned list instead of a dictionary of numbers"),
        ("nan", "moody_words is nan, not a number"),
        ("no numbers", "it returned no number, only words, parts"),
        ("others", "it gave moody, but before moody_words, moody_same"),
        ("raise", "RuntimeError: I will not score the end"),
        ("die", "its process ended with code 3: fatal: I am dying"),
    ],
)
def test_module_that_fails_names_itself_the_pair_and_why(moody: Metric, mood: str, said: str) -> None:
    with pytest.raises(MetricFailed) as failure:
        moody.score(["fine", "fine", mood, mood], ["", "", "the end", ""])
    assert failure.value.message == f"The metric 'moody' failed on pair 3 of 4: {said}"
    assert failure.value.fields == {"metric": "moody", "pair": 2}


def test_module_scores_again_after_it_died(moody: Metric) -> None:
    with pytest.raises(MetricFailed):
        moody.score(["die"], [""])
    assert moody.score(["a b"], [""])[0]["moody_words"].fmeasure == 2.0


def test_module_that_hangs_is_killed_when_the_job_ends(moody: Metric) -> None:
    moody.score(["a"], [""])
    pid, begun = pid_of(moody), time.monotonic()
    with pytest.raises(JobEnded, match="cancelled"):
        moody.score(["hang"], [""], progress=Asked(looks=3, reason=JobEnded("The job was cancelled.")))
    assert time.monotonic() - begun < 5
    assert not is_alive(pid)


def test_module_that_hangs_is_given_up(moody: Metric) -> None:
    assert isinstance(moody, ModuleMetric)
    moody.score(["a"], [""])
    pid, moody._pair_limit_s = pid_of(moody), 0.3
    try:
        with pytest.raises(MetricFailed, match=r"failed on pair 1 of 1: it gave no answer for 0\.3 s"):
            moody.score(["hang"], [""])
    finally:
        moody._pair_limit_s = modules.PAIR_LIMIT_S
    assert not is_alive(pid)


def test_text_longer_than_a_pipe_comes_through(moody: Metric) -> None:
    (scores,) = moody.score(["word " * 200_000], ["é" * 100_000])
    assert scores["moody_words"].fmeasure == 200_000


def test_closed_module_leaves_no_process_and_no_files(moody: Metric) -> None:
    moody.score(["a"], [""])
    assert isinstance(moody, ModuleMetric)
    assert moody._process is not None
    assert moody._process._directory is not None
    pid, files, opened = pid_of(moody), Path(moody._process._directory.name), len(os.listdir("/proc/self/fd"))
    assert list(files.iterdir())
    moody.close()
    moody.close()
    assert not is_alive(pid)
    assert not files.exists()
    assert len(os.listdir("/proc/self/fd")) == opened - 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", "could not be loaded: RuntimeError: no model of mine is here"),
        ("needy", "package_that_nobody_has"),
        ("empty", "could not be loaded: "),
    ],
)
def test_module_that_cannot_be_loaded_says_why(directory: Path, name: str, said: str) -> None:
    with pytest.raises(MetricFailed) as failure:
        load_metric(name, stemming=True, directory=directory)
    assert said in failure.value.message
    assert failure.value.fields == {"metric": name}


def test_unknown_metric_names_those_that_there_are(directory: Path) -> None:
    with pytest.raises(UnknownMetric, match=r"no metric 'bleu'\. This worker knows: rouge, broken, empty, moody, needy\."):
        load_metric("bleu", stemming=True, directory=directory)
    with pytest.raises(UnknownMetric, match="GISTMILL_WORKER__METRICS_DIR"):
        load_metric("bleu", stemming=True, directory=None)
    with pytest.raises(UnknownMetric, match=r"This worker knows: rouge\."):
        load_metric("bleu", stemming=True, directory=directory / "nothing")


@pytest.mark.parametrize("name", ["Upper", "with-dash", "a" * 51, "1st", "two words", "line\n", "a.b"])
def test_folder_that_is_no_name_is_not_loaded(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, MOODY)
    write(tmp_path, "good", MOODY)
    with pytest.raises(UnknownMetric, match=r"This worker knows: rouge, good\.$"):
        modules.find(name, tmp_path)


@pytest.mark.parametrize("name", ["../outside", "good/inner", "./good", "/etc", ".", "..", ""])
def test_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "metrics"
    (inside / "good" / "inner" / "good").mkdir(parents=True)
    for path in ("good/good.py", "good/inner/good/inner.py", "good/inner/inner.py"):
        (inside / path).write_text(MOODY, encoding="utf-8")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside.py").write_text(MOODY, encoding="utf-8")
    with pytest.raises(UnknownMetric):
        modules.find(name, inside)


def test_link_out_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    outside = write(tmp_path, "outside", MOODY)
    inside = tmp_path / "metrics"
    inside.mkdir()
    (inside / "outside").symlink_to(outside.parent)
    (inside / "sly").mkdir()
    (inside / "sly" / "sly.py").symlink_to(outside)
    for name in ("outside", "sly"):
        with pytest.raises(UnknownMetric, match="link out of"):
            modules.find(name, inside)
    # The directory itself may be reached by a link: the operator named it.
    write(inside, "good", MOODY)
    (tmp_path / "link").symlink_to(inside)
    assert modules.find("good", tmp_path / "link") == inside / "good" / "good.py"


def test_measures_of_two_metrics_are_kept_apart_and_nothing_stays_open(tmp_path: Path) -> None:
    write(tmp_path, "rouge1", MOODY.replace('"same": int(predictions == references),', ""))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MetricFailed, match="'rouge' and 'rouge1' both give a measure 'rouge1'"):
        load_metrics(["rouge", "rouge1"], stemming=True, directory=tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


PARENT = """
import sys
from pathlib import Path
from workers.evaluation.metrics import load_metric

metric = load_metric("moody", stemming=True, directory=Path(sys.argv[1]))
print(metric._process.pid, "torch" in sys.modules, "evaluate" in sys.modules, flush=True)
metric.score(["hang"], [""])
"""


def test_child_ends_with_its_parent_and_the_parent_imports_neither_evaluate_nor_torch(directory: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, *imported = parent.stdout.readline().split()
        assert imported == ["False", "False"]
        assert is_alive(int(pid))
        parent.kill()
    wait_until(lambda: not is_alive(int(pid)), what="the child has ended")


def test_example_gives_what_sacrebleu_gives() -> None:
    metric = load_metric("sacre", stemming=True, directory=EXAMPLES)
    try:
        scores = metric.score(TEXTS, REFERENCES)
    finally:
        metric.close()
    assert metric.measures == ("sacre_bleu", "sacre_chrf")
    assert "eff:yes|tok:13a|smooth:exp|version:2." in metric.signature
    bleu, chrf = BLEU(effective_order=True), CHRF()
    for pair, text, reference in zip(scores, TEXTS, REFERENCES, strict=True):
        assert pair["sacre_bleu"].fmeasure == bleu.sentence_score(text, [reference]).score / 100
        assert pair["sacre_chrf"].fmeasure == chrf.sentence_score(text, [reference]).score / 100
    assert 0 < scores[0]["sacre_bleu"].fmeasure < 1


BY_PATH = """
import json
import sys
import evaluate

metric = evaluate.load(sys.argv[1])
texts, references = json.load(sys.stdin)
found = {
    "stemmed": metric.compute(predictions=texts, references=references, use_stemmer=True, use_aggregator=False),
    "plain": metric.compute(predictions=texts, references=references, use_aggregator=False),
    "means": metric.compute(predictions=texts, references=references, use_stemmer=True),
    "several": metric.compute(predictions=texts, references=[references[:2]] * len(texts), use_aggregator=False),
    "one": metric.compute(predictions=texts, references=references, rouge_types=["rougeL"]),
}
try:
    metric.compute(predictions=texts, references=references, rouge_types=["rouge3"])
except ValueError as error:
    found["error"] = str(error)
print(json.dumps(found))
"""


def test_our_rouge_can_be_loaded_by_path_and_gives_the_figures_of_rouge_score(tmp_path: Path) -> None:
    caches = {name: str(tmp_path / name) for name in ("HF_MODULES_CACHE", "HF_METRICS_CACHE", "HF_EVALUATE_CACHE")}
    done = subprocess.run(
        [sys.executable, "-c", BY_PATH, str(OURS / "gistmill_rouge")],
        input=json.dumps([TEXTS, REFERENCES]),
        capture_output=True,
        text=True,
        env=os.environ | caches | {"HF_HUB_OFFLINE": "1"},
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])

    stemmed, plain = (RougeScorer(list(MEASURES), use_stemmer=stemming) for stemming in (True, False))
    pairs = list(zip(TEXTS, REFERENCES, strict=True))
    for name in MEASURES:
        wanted = [stemmed.score(reference, text)[name].fmeasure for text, reference in pairs]
        assert found["stemmed"][name] == wanted
        assert found["means"][name] == pytest.approx(sum(wanted) / len(wanted), abs=1e-15)
        assert found["plain"][name] == [plain.score(reference, text)[name].fmeasure for text, reference in pairs]
        assert found["several"][name] == [plain.score_multi(REFERENCES[:2], text)[name].fmeasure for text in TEXTS]
    assert found["stemmed"] != found["plain"]
    assert list(found["one"]) == ["rougeL"]
    assert found["error"] == "rouge_types has ['rouge3']; it can have rouge1, rouge2, rougeL, rougeLsum"
