"""The demo: 200 sample dialogues through the embedded stack, read back as a user and by SQL. `make demo` runs it."""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gistmill.client import Job

ROOT = Path(__file__).parent.parent
HOME = ROOT / "demo-data"
SAMPLE = ROOT / "examples" / "sample-dialogues.jsonl"
SHOWN = 5


def main() -> int:
    """Summarize, show, and stop everything that was started."""
    os.environ["GISTMILL_HOME"] = str(HOME)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from gistmill.client import Client

    started_at = time.monotonic()
    print("Starting redis, the api and one worker …", flush=True)
    with Client() as client:
        job = client.summarize(SAMPLE, model="gist-tiny", prompt="instruction", generation={"max_new_tokens": 64})
        print(f"Submitted {job.id}: {job.counts.items} items, {job.counts.distinct} distinct dialogues", flush=True)
        job.wait(progress=True)
        if job.state != "completed" or job.counts.failed:
            print(f"The job ended as {job.state} with {job.counts.failed} failed items: {job.view.error}", file=sys.stderr)
            return 1
        show_dialogues(job)
        query = f"select item_id, summary, shared from v_summaries where job_id = '{job.id}' order by row_number limit {SHOWN}"
        print(f"\nThe same {SHOWN} by SQL: {query}\n")
        for row in client.sql(query).rows:
            print("  " + " | ".join(str(value) for value in row))
        counts = job.counts
        print(
            f"\n{counts.items} items, {counts.distinct} distinct, {counts.generated} generated, {counts.shared} shared, "
            f"{counts.failed} failed, {job.view.dialogues_per_s or 0:.1f} dialogues/s"
        )
        if counts.generated == 0:
            print("Nothing was generated: every summary was stored by an earlier run.")
        print(f"\nThe data lies in {HOME.relative_to(Path.cwd()) if HOME.is_relative_to(Path.cwd()) else HOME}.")
    print(
        "gist-tiny is a toy of 1.3 million parameters that knows only the generated dialogues of this repository. It is no\n"
        "general summarizer: for your own calls use --model google/flan-t5-base, or a model that you add."
    )
    print(f"Everything was stopped after {time.monotonic() - started_at:.0f} s.")
    return 0


def show_dialogues(job: Job) -> None:
    """Print the first dialogues of the file with their summaries."""

    rows = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()[:SHOWN]]
    summaries = {result.id: result.summary for result in islice(job.results(), 10_000)}
    for row in rows:
        print(f"\n--- {row['id']}\n{row['dialogue']}\n=> {summaries[row['id']]}")


if __name__ == "__main__":
    sys.exit(main())
