"""A worker fetches a model by digest from a real HTTP server that may be slow, wrong, cut short or gone."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from gistmill.errors import DigestMismatch, Draining, ModelUnavailable, ModelUnreadable, NotFound
from models_store.fetch import fetch
from models_store.importing import import_directory
from models_store.manifest import Manifest
from models_store.store import Store
from tests.support.checkpoints import make_checkpoint
from tests.support.servers import free_port, wait_until

TOKEN = "a-token-for-tests"
ROWS = 50_000


@dataclass
class Api:
    """Answers as the api does, save where a test replaces an answer by its path's last part."""

    store: Store
    url: str = ""
    asked: list[str] = field(default_factory=list)
    answers: dict[str, bytes] = field(default_factory=dict)
    cut: str = ""
    gate: threading.Event = field(default_factory=threading.Event)
    held: str = ""
    missing: bytes = json.dumps({"code": "unknown_model", "detail": "There is no such model."}).encode()

    def answer(self, path: str) -> bytes | None:
        """Return the body, or None for a 404."""
        digest, _, what = unquote(path).removeprefix("/v1/models/by-digest/").partition("/")
        last = what.rpartition("/")[2]
        if last in self.answers:
            return self.answers[last]
        try:
            if what == "manifest":
                return self.store.get_manifest(digest).model_dump_json().encode()
            return self.store.get_file(digest, last).read_bytes()
        except NotFound:
            return None


def serve(api: Api) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            last = self.path.rpartition("/")[2]
            api.asked.append(last)
            body = api.answer(self.path)
            status = 401 if self.headers["Authorization"] != f"Bearer {TOKEN}" else 404 if body is None else 200
            sent = (body or b"") if status == 200 else api.missing if (status, last) == (404, "manifest") else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            if last == api.held:
                self.wfile.write(sent[:100_000])
                api.gate.wait(30)
                sent = sent[100_000:]
            self.wfile.write(sent[: len(sent) // 2] if last == api.cut else sent)

        def log_message(self, *_: object) -> None:
            """Keep the test output clean."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that stops in the middle is no error of the server."""

    return Server(("127.0.0.1", 0), Handler)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    api = Api(Store(tmp_path / "api"))
    server = serve(api)
    api.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield api
    api.gate.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def model(api: Api, tmp_path: Path) -> Manifest:
    return import_directory(api.store, make_checkpoint(tmp_path / "source", rows=ROWS), label="test")


@pytest.fixture
def worker(tmp_path: Path) -> Store:
    return Store(tmp_path / "worker")


def get(store: Store, api: Api, digest: str) -> Path:
    return fetch(store, digest, base_url=api.url, token=TOKEN)


def is_clean(store: Store) -> bool:
    return not list((store.root / "incoming").glob("*")) and not list((store.root / "models").glob("*"))


def test_model_is_fetched_whole_and_once(api: Api, model: Manifest, worker: Store) -> None:
    directory = get(worker, api, model.digest)
    for entry in model.files:
        assert (directory / entry.path).read_bytes() == (api.store.get(model.digest) / entry.path).read_bytes()
    assert worker.get_manifest(model.digest) == model
    asked = len(api.asked)
    assert get(worker, api, model.digest) == directory
    assert len(api.asked) == asked == 1 + len(model.files)


def test_workers_that_share_a_store_fetch_once(api: Api, model: Manifest, worker: Store) -> None:
    api.held = "model.safetensors"
    command = (
        "import sys; from pathlib import Path; from models_store.fetch import fetch; from models_store.store import Store\n"
        "print(fetch(Store(Path(sys.argv[1])), sys.argv[2], base_url=sys.argv[3], token=sys.argv[4]))"
    )
    arguments = [sys.executable, "-c", command, str(worker.root), model.digest, api.url, TOKEN]
    children = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    wait_until(lambda: "model.safetensors" in api.asked, timeout_s=60, what="the first download")
    polls: list[int] = []

    def never() -> bool:
        polls.append(1)
        return False

    thread = threading.Thread(
        target=lambda: fetch(worker, model.digest, base_url=api.url, token=TOKEN, should_stop=never), daemon=True
    )
    thread.start()
    wait_until(lambda: len(polls) >= 2, what="a third one that waits")
    api.gate.set()
    thread.join()
    outputs = [child.communicate(timeout=60)[0].splitlines()[-1] for child in children]
    assert outputs == [str(worker.get(model.digest))] * 2
    assert api.asked.count("model.safetensors") == 1


def test_waiting_worker_ticks_only_while_the_other_one_progresses(api: Api, model: Manifest, worker: Store) -> None:
    other = os.open(worker.lock_path(model.digest), os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    polls: list[int] = []
    ticks: list[int] = []
    errors: list[BaseException] = []
    stop = threading.Event()

    def should_stop() -> bool:
        polls.append(1)
        return stop.is_set()

    def wait() -> None:
        try:
            fetch(worker, model.digest, base_url=api.url, token=TOKEN, should_stop=should_stop, tick=lambda: ticks.append(1))
        except Draining as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        wait_until(lambda: len(polls) >= 4, what="polls without progress")
        assert ticks == []
        os.utime(other)
        wait_until(lambda: len(ticks) == 1, what="the tick of progress")
        before = len(polls)
        wait_until(lambda: len(polls) >= before + 4, what="polls without progress")
    finally:
        stop.set()
        thread.join()
        os.close(other)
    assert (len(ticks), len(errors), api.asked) == (1, 1, [])


def test_download_ticks_and_stops_when_told(api: Api, model: Manifest, worker: Store) -> None:
    ticks: list[int] = []
    with pytest.raises(Draining):
        fetch(
            worker,
            model.digest,
            base_url=api.url,
            token=TOKEN,
            should_stop=lambda: len(ticks) >= 5,
            tick=lambda: ticks.append(1),
        )
    assert len(ticks) == 5
    assert is_clean(worker)
    assert get(worker, api, model.digest).is_dir()


def test_those_who_wait_can_see_the_download_progress(api: Api, model: Manifest, worker: Store) -> None:
    lock = worker.lock_path(model.digest)
    lock.touch()
    os.utime(lock, (0, 0))
    changed: list[float] = []
    fetch(worker, model.digest, base_url=api.url, token=TOKEN, tick=lambda: changed.append(lock.stat().st_mtime))
    assert min(changed) > 0


def test_model_that_the_api_does_not_know_is_not_asked_for_again(api: Api, model: Manifest, worker: Store) -> None:
    with pytest.raises(ModelUnreadable, match=r"There is no such model\. Add the model again") as refused:
        get(worker, api, "0" * 64)
    assert not refused.value.retryable
    assert is_clean(worker)


@pytest.mark.parametrize("body", [b"", b"<html>no such page</html>", b'{"code": "not_found", "detail": "no such page"}', b"[]"])
def test_wrong_token_and_404_of_another_can_be_tried_again(api: Api, model: Manifest, worker: Store, body: bytes) -> None:
    with pytest.raises(ModelUnavailable, match="401"):
        fetch(worker, model.digest, base_url=api.url, token="wrong")
    api.missing = body
    with pytest.raises(ModelUnavailable, match="404") as refused:
        get(worker, api, "0" * 64)
    assert refused.value.retryable
    assert is_clean(worker)


def test_api_that_is_gone_or_not_set_can_be_tried_again(model: Manifest, worker: Store) -> None:
    with pytest.raises(ModelUnavailable, match="could not be fetched from http"):
        fetch(worker, model.digest, base_url=f"http://127.0.0.1:{free_port()}", token=TOKEN)
    with pytest.raises(ModelUnavailable, match="GISTMILL_API__URL"):
        fetch(worker, model.digest, base_url="", token=TOKEN)
    assert is_clean(worker)


@pytest.mark.parametrize("digest", ["../../outside", "", "0" * 63])
def test_what_is_no_digest_is_not_asked_for(api: Api, worker: Store, digest: str) -> None:
    with pytest.raises(NotFound):
        get(worker, api, digest)
    assert (api.asked, worker.root.exists()) == ([], False)


def test_changed_file_is_refused_by_name(api: Api, model: Manifest, worker: Store) -> None:
    path = api.store.get(model.digest) / "model.safetensors"
    content = path.read_bytes()
    for changed, match in (
        (content[:-1] + b"\x01", "does not have the digest"),
        (content[:-1], "does not have the digest"),
        (content + b"\0", "more bytes"),
    ):
        api.answers["model.safetensors"] = changed
        with pytest.raises(DigestMismatch, match=rf"model\.safetensors.*{match}|{match}.*model\.safetensors"):
            get(worker, api, model.digest)
        assert is_clean(worker)


def test_download_that_breaks_off_can_be_tried_again(api: Api, model: Manifest, worker: Store) -> None:
    api.cut = "model.safetensors"
    with pytest.raises(ModelUnavailable):
        get(worker, api, model.digest)
    assert is_clean(worker)
    api.cut = ""
    assert get(worker, api, model.digest).is_dir()


def test_manifest_of_another_model_is_refused(api: Api, model: Manifest, worker: Store, tmp_path: Path) -> None:
    other = import_directory(api.store, make_checkpoint(tmp_path / "other", seed=1), label="test")
    api.answers["manifest"] = other.model_dump_json().encode()
    with pytest.raises(DigestMismatch, match="another model"):
        get(worker, api, model.digest)
    api.answers["manifest"] = model.model_copy(update={"files": model.files[:1]}).model_dump_json().encode()
    with pytest.raises(DigestMismatch, match="own digest"):
        get(worker, api, model.digest)
    assert is_clean(worker)


def test_answer_that_is_no_manifest_can_be_tried_again(api: Api, model: Manifest, worker: Store) -> None:
    api.answers["manifest"] = b"<html>a proxy is tired</html>"
    with pytest.raises(ModelUnavailable, match="something else than a manifest"):
        get(worker, api, model.digest)


def test_manifest_cannot_make_a_worker_write_elsewhere(api: Api, model: Manifest, worker: Store, tmp_path: Path) -> None:
    good = model.model_dump_json()
    for name, error in (("../../../escaped", ModelUnavailable), ("..%2fescaped", ModelUnavailable), ("run.py", DigestMismatch)):
        api.answers["manifest"] = good.replace("config.json", name).encode()
        with pytest.raises(error):
            get(worker, api, model.digest)
    assert is_clean(worker)
    assert not list(tmp_path.rglob("*escaped*"))
