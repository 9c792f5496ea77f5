"""`python -m workers.evaluation.metric_child FILE REQUESTS ANSWERS LIFELINE`: score pairs by an `evaluate` module.

The last three are descriptors. The first answer says that the module is loaded; then each request gets one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from numbers import Real
from types import TracebackType
from typing import Any

from workers import lifeline

SIGNATURE_CHARACTERS = 200
ERROR_CHARACTERS = 500

Send = Callable[[dict[str, Any]], None]


def main(arguments: list[str]) -> int:
    """Answer until the requests end."""
    path = arguments[0]
    requests, answers, life = (int(argument) for argument in arguments[1:])
    lifeline.hold(life, grace_s=0)

    def send(answer: dict[str, Any]) -> None:
        line = json.dumps(answer).encode() + b"\n"
        while line:
            line = line[os.write(answers, line) :]

    sys.excepthook = _telling(send)
    metric = _load(path)
    is_nested = _takes_lists(metric)
    send({"signature": str(getattr(metric, "signature", ""))[:SIGNATURE_CHARACTERS]})
    with os.fdopen(requests, encoding="utf-8") as lines:
        for line in lines:
            pair = json.loads(line)
            reference = [pair["reference"]] if is_nested else pair["reference"]
            send(_numbers(metric.compute(predictions=[pair["prediction"]], references=[reference])))
    return 0


def _load(path: str) -> Any:
    """Return the module's metric; `evaluate` copies the file and imports the copy."""
    # With transformers `evaluate` imports torch, for pipelines that no metric calls: 5 s and 500 MB, not 1.5 s and 200 MB.
    # It does without when they cannot be imported. A module that needs them imports them afterwards, itself.
    sys.modules["transformers"] = None  # type: ignore[assignment]
    try:
        import evaluate
    except ModuleNotFoundError as error:
        if error.name != "evaluate":
            raise
        raise ModuleNotFoundError("this worker has no `evaluate`, which loads modules: pip install evaluate") from error
    finally:
        del sys.modules["transformers"]
    # In memory: a file and a lock for each pair would take most of the time.
    return evaluate.load(path, keep_in_memory=True)


def _takes_lists(metric: Any) -> bool:
    """Tell whether a reference has to come in a list of references: when no form of the input takes it alone."""
    from datasets import Value

    forms = metric.features if isinstance(metric.features, list) else [metric.features]
    return not any(isinstance(form.get("references"), Value) for form in forms)


def _numbers(result: Any) -> dict[str, Any]:
    if not isinstance(result, Mapping):
        return {"error": f"it returned {type(result).__name__} instead of a dictionary of numbers"}
    numbers = {str(key): float(value) for key, value in result.items() if isinstance(value, Real)}
    return (
        {"numbers": numbers}
        if numbers
        else {"error": f"it returned no number, only {', '.join(map(str, result)) or 'nothing'}"}
    )


def _telling(send: Send) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """Return the hook for what nobody caught: the parent is told, and threads that the module left keep nobody waiting."""

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.__excepthook__(kind, error, trace)
        send({"error": f"{kind.__name__}: {error}"[:ERROR_CHARACTERS]})
        os._exit(1)

    return tell


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
