"""The thin client: submit, watch and read back over HTTP. It needs no torch, no database and no queue.

from gistmill.client import Client

with Client() as client:
    job = client.summarize("calls.jsonl", model="gist-tiny").wait(progress=True)
    for result in job.results():
        ...
"""

from gistmill.client.client import Client
from gistmill.client.job import Job

__all__ = ["Client", "Job"]
