"""A dataset is loaded whole or not at all, once, whoever dies and however many bring it."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, func, select, update

from gistmill.db import datasets as loads
from gistmill.db.clock import db_now
from gistmill.db.datasets import Lease, NewDataset
from gistmill.db.session import Database
from gistmill.db.tables import dataset_dialogues, dataset_rows, datasets, dialogues
from gistmill.errors import InvalidDataset, InvalidInput, InvalidName, LeaseLost
from gistmill.ingest.mapping import Mapping
from gistmill.ingest.rows import Row
from gistmill.submit import load_dataset_file, load_rows, loading, sweep_datasets
from gistmill.views import DatasetView
from tests.support.jobs import first_tenant

DIGEST = "d" * 64


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours runs behind it."""


def rows_of(texts: list[str]) -> list[Row]:
    return [Row(number, number + 1, str(number + 1), text) for number, text in enumerate(texts)]


def new_dataset(database: Database, digest: str = DIGEST) -> NewDataset:
    return NewDataset(first_tenant(database), digest, "calls", "jsonl", {"dialogue": "transcript"}, ("one warning",))


def load(database: Database, rows: list[Row], digest: str = DIGEST) -> tuple[DatasetView, bool]:
    return load_rows(database, new_dataset(database, digest), lambda: rows, count=len(rows))


def begin(database: Database, owner: str) -> Lease:
    lease = database.transact(partial(loads.begin, new=new_dataset(database), owner=owner))
    assert lease is not None
    return lease


def write(database: Database, lease: Lease, rows: list[Row]) -> Lease:
    return database.transact(partial(loads.write_rows, lease=lease, rows=rows))


def stored_rows(database: Database) -> list[Any]:
    query = (
        select(dataset_rows, dialogues.c.text)
        .join(dialogues, dialogues.c.key == dataset_rows.c.dialogue_key)
        .order_by(dataset_rows.c.dataset_key, dataset_rows.c.row_number)
    )
    with database.read() as connection:
        return list(connection.execute(query))


def stored_ranks(database: Database) -> list[tuple[int, str, int]]:
    query = (
        select(dataset_dialogues.c.rank, dialogues.c.text, dataset_dialogues.c.rows)
        .join(dialogues, dialogues.c.key == dataset_dialogues.c.dialogue_key)
        .order_by(dataset_dialogues.c.rank)
    )
    with database.read() as connection:
        return [tuple(row) for row in connection.execute(query)]


def length_step(length: int) -> int:
    """Return the length in steps of an eighth or less."""
    step = next((step for below, step in ((256, 8), (1024, 32), (4096, 128), (16_384, 512)) if length < below), 2048)
    return length // step * step


def expected_ranks(texts: list[str]) -> list[tuple[int, str, int]]:
    rows = Counter(texts)
    ranked = sorted(rows, key=lambda text: (length_step(len(text)), texts.index(text)))
    return [(rank, text, rows[text]) for rank, text in enumerate(ranked)]


def count(database: Database, table: Any) -> int:
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def leave_unattended(database: Database, *, for_s: float) -> None:
    """Let every lease end this long ago."""
    database.transact(
        lambda connection: connection.execute(
            update(datasets).where(datasets.c.state == "loading").values(lease_until=db_now() - for_s)
        )
    )


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every transaction hold three rows, so that a small dataset takes many."""
    monkeypatch.setattr("gistmill.db.datasets.PAGE", 3)
    monkeypatch.setattr("gistmill.submit.loading.BATCH_ROWS", 3)


def test_rows_are_stored_as_they_came_and_dialogues_once(database: Database) -> None:
    rows = [
        Row(0, 1, "a", "Ann: hi", ("She says hi.", "Hi."), {"topic": "greeting"}),
        Row(1, 2, "b", "Bob: goodbye"),
        Row(2, 3, "c", "Ann: hi", metadata={"n": [1, None]}),
    ]

    view, is_new = load(database, rows)

    assert is_new
    assert (view.state, view.rows, view.dialogues, view.name, view.warnings) == ("ready", 3, 2, "calls", ["one warning"])
    stored = stored_rows(database)
    assert [(row.row_number, row.id, row.text, row.occurrence) for row in stored] == [
        (0, "a", "Ann: hi", 0),
        (1, "b", "Bob: goodbye", 0),
        (2, "c", "Ann: hi", 1),
    ]
    assert [row.references for row in stored] == [["She says hi.", "Hi."], [], []]
    assert [row.metadata for row in stored] == [{"topic": "greeting"}, {}, {"n": [1, None]}]
    assert count(database, dialogues) == 2


def test_dialogues_stored_before_are_found_also_behind_a_page_of_new_ones(database: Database) -> None:
    load(database, rows_of(["old", "other"]), digest="e" * 64)
    lease = begin(database, "me")
    pages = [["a", "b", "c"], ["d", "a", "b"], ["e", "f", "e"], ["g"], ["old", "e", "old", "h"], ["e", "a"]]
    for page in pages:
        lease = write(database, lease, [Row(0, 1, "", text) for text in page])
        assert lease.found_none is (page in (pages[0], pages[2], pages[3]))

    seen: Counter[str] = Counter()
    stored = stored_rows(database)[2:]
    for row, text in zip(stored, chain.from_iterable(pages), strict=True):
        assert (row.text, row.occurrence) == (text, seen[text])
        seen[text] += 1
    assert count(database, dialogues) == len({*seen, "other"})


@pytest.mark.usefixtures("small_pages")
def test_occurrences_and_ranks_go_on_across_transactions(database: Database) -> None:
    texts = ["b", "aa", "b", "b", "ccc", "aa", "b", "ü", "c", "b", "aa"]

    load(database, rows_of(texts))

    seen: Counter[str] = Counter()
    for row, text in zip(stored_rows(database), texts, strict=True):
        assert (row.text, row.occurrence) == (text, seen[text])
        seen[text] += 1
    assert stored_ranks(database) == expected_ranks(texts)


def test_datasets_of_a_tenant_share_dialogues(database: Database) -> None:
    load(database, rows_of(["a", "b", "b"]))
    load(database, rows_of(["c", "b", "a", "a"]), digest="e" * 64)

    assert count(database, dialogues) == 3
    assert [(row.text, row.occurrence) for row in stored_rows(database)[3:]] == [("c", 0), ("b", 0), ("a", 0), ("a", 1)]


def test_the_same_rows_again_are_the_same_dataset(database: Database) -> None:
    first, is_first_new = load(database, rows_of(["a", "b"]))
    second, is_second_new = load(database, rows_of(["a", "b"]))

    assert (first, is_first_new, is_second_new) == (second, True, False)
    assert count(database, dataset_rows) == 2


@pytest.mark.usefixtures("small_pages")
def test_an_upload_that_was_cut_off_goes_on_behind_its_last_row(database: Database) -> None:
    texts = ["a", "b", "a", "a", "dd", "b", "c", "a"]
    rows = rows_of(texts)

    def read_until_killed() -> Iterator[Row]:
        yield from rows[:7]
        raise Killed

    with pytest.raises(Killed):
        load_rows(database, new_dataset(database), read_until_killed, count=len(rows))
    assert count(database, dataset_rows) == 6
    view, is_new = load(database, rows)

    assert (view.rows, view.dialogues, is_new) == (8, 4, False)
    assert [row.text for row in stored_rows(database)] == texts
    assert [row.occurrence for row in stored_rows(database)] == [0, 0, 1, 2, 0, 1, 0, 3]
    assert stored_ranks(database) == expected_ranks(texts)


@pytest.mark.usefixtures("small_pages")
def test_ranking_that_was_cut_off_goes_on_behind_its_last_rank(database: Database) -> None:
    texts = ["f", "e", "d", "c", "b", "a", "gg"]
    lease = write(database, begin(database, "killed"), rows_of(texts))
    with database.read() as connection:
        ranking = loads.read_ranking(connection, lease.dataset_key)
    database.transact(partial(loads.write_ranks, lease=lease, ranking=ranking, stop=3))
    leave_unattended(database, for_s=1)

    load(database, rows_of(texts))

    assert stored_ranks(database) == expected_ranks(texts)


@pytest.mark.usefixtures("small_pages")
def test_ranks_of_another_order_are_taken_back(database: Database) -> None:
    texts = ["f", "e", "d", "c", "b", "a", "gg"]
    lease = write(database, begin(database, "older"), rows_of(texts))
    with database.read() as connection:
        ranking = loads.read_ranking(connection, lease.dataset_key)
    ranking.keys.reverse()
    database.transact(partial(loads.write_ranks, lease=lease, ranking=ranking, stop=3))
    leave_unattended(database, for_s=1)

    load(database, rows_of(texts))

    assert stored_ranks(database) == expected_ranks(texts)


def test_ranks_follow_the_length_in_steps_and_then_the_rows(database: Database) -> None:
    lengths = [300, 12, 319, 15, 9, 20_000, 8, 257, 2, 17_000, 255]
    texts = [chr(ord("a") + place) * length for place, length in enumerate(lengths)]

    load(database, rows_of(texts))

    assert [len(text) for _, text, _ in stored_ranks(database)] == [2, 12, 15, 9, 8, 255, 257, 300, 319, 17_000, 20_000]
    assert stored_ranks(database) == expected_ranks(texts)


def test_whoever_lost_the_lease_writes_nothing(database: Database) -> None:
    rows = rows_of(["a", "b"])
    stopped = write(database, begin(database, "stopped"), rows[:1])
    leave_unattended(database, for_s=1)
    taken = database.transact(partial(loads.take_over, dataset_key=stopped.dataset_key, owner="next"))

    with pytest.raises(LeaseLost):
        write(database, stopped, rows[1:])
    with pytest.raises(LeaseLost):
        database.transact(partial(loads.finish, lease=stopped))
    with pytest.raises(LeaseLost):
        database.transact(partial(loads.release, lease=stopped))
    assert taken is not None
    assert write(database, taken, rows[1:]).rows == count(database, dataset_rows) == 2


def test_a_lease_that_is_held_cannot_be_taken(database: Database) -> None:
    lease = begin(database, "first")

    assert database.transact(partial(loads.begin, new=new_dataset(database), owner="second")) is None
    assert database.transact(partial(loads.take_over, dataset_key=lease.dataset_key, owner="second")) is None


def test_whoever_comes_second_waits_for_the_first(database: Database) -> None:
    rows = rows_of(["a", "b"])
    has_begun, may_go_on = threading.Event(), threading.Event()

    def read_slowly() -> Iterator[Row]:
        has_begun.set()
        assert may_go_on.wait(10)
        yield from rows

    def read_never() -> Iterator[Row]:
        raise AssertionError("the second one read the rows")

    answers: dict[str, tuple[DatasetView, bool]] = {}

    def run(name: str, read: Callable[[], Iterator[Row]]) -> None:
        answers[name] = load_rows(database, new_dataset(database), read, count=2)

    first = threading.Thread(target=run, args=("first", read_slowly))
    first.start()
    assert has_begun.wait(10)
    second = threading.Thread(target=run, args=("second", read_never))
    second.start()
    may_go_on.set()
    first.join(10)
    second.join(10)

    assert answers["first"][0] == answers["second"][0]
    assert (answers["first"][1], answers["second"][1]) == (True, False)


def test_uploads_of_many_at_once_make_each_dataset_once(database: Database) -> None:
    texts = [f"dialogue {number % 40}" for number in range(100)]
    answers: list[tuple[str, bool]] = []

    def run(digest: str) -> None:
        view, is_new = load(database, rows_of(texts), digest=digest)
        answers.append((view.id, is_new))

    threads = [threading.Thread(target=run, args=(digest * 64,)) for digest in "abab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(answers) == 4
    assert len({dataset_id for dataset_id, _ in answers}) == 2
    assert sum(is_new for _, is_new in answers) == 2
    assert (count(database, dialogues), count(database, dataset_rows)) == (40, 200)


def test_rows_that_changed_between_the_passes_make_no_dataset(database: Database) -> None:
    rows = rows_of(["a", "b"])

    with pytest.raises(InvalidDataset, match="changed while it was read"):
        load_rows(database, new_dataset(database), lambda: rows[:1], count=2)

    with database.read() as connection:
        assert connection.execute(select(datasets.c.state)).scalar_one() == "loading"


@pytest.mark.usefixtures("small_pages")
def test_an_abandoned_upload_is_undone_page_by_page(database: Database) -> None:
    kept, _ = load(database, rows_of(["a", "b"]), digest="e" * 64)
    texts = [*"abcdefgh"]
    lease = write(database, begin(database, "gone"), rows_of(texts))
    with database.read() as connection:
        ranking = loads.read_ranking(connection, lease.dataset_key)
    database.transact(partial(loads.write_ranks, lease=lease, ranking=ranking, stop=loads.PAGE))
    leave_unattended(database, for_s=3500)
    assert sweep_datasets(database) == 0
    leave_unattended(database, for_s=3700)

    assert sweep_datasets(database, 2) == 2
    assert count(database, dataset_rows) == 2 + 5
    assert sweep_datasets(database) == 3
    assert (count(database, datasets), count(database, dataset_rows), count(database, dataset_dialogues)) == (1, 2, 2)
    assert load(database, rows_of(["a", "b"]), digest="e" * 64)[0] == kept


@pytest.mark.usefixtures("small_pages")
def test_an_upload_that_was_half_undone_can_still_be_finished(database: Database) -> None:
    texts = [*"abacadaeaf"]
    frozen = write(database, begin(database, "frozen"), rows_of(texts))
    leave_unattended(database, for_s=3700)
    assert sweep_datasets(database, 2) == 2

    with pytest.raises(LeaseLost):
        write(database, frozen, rows_of(["more"]))
    load(database, rows_of(texts))

    assert [row.text for row in stored_rows(database)] == texts
    assert [row.occurrence for row in stored_rows(database) if row.text == "a"] == [0, 1, 2, 3, 4]
    assert stored_ranks(database) == expected_ranks(texts)


def test_a_file_becomes_a_ready_dataset(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_text('{"transcript": "Ann: hi", "summary": "Hi."}\n\n{"transcript": "Bob: hi", "topic": "x"}\n')
    mapping = Mapping(dialogue="transcript")

    view, is_new = load_dataset_file(database, first_tenant(database), path, name="my calls (1)", mapping=mapping)
    again, is_again_new = load_dataset_file(database, first_tenant(database), path, name="other", mapping=mapping)

    assert (view.name, view.format, view.rows, view.dialogues, is_new) == ("my calls (1)", "jsonl", 2, 2, True)
    assert (again, is_again_new) == (view, False)
    stored = [(row.id, row.text, row.references, row.metadata) for row in stored_rows(database)]
    assert stored == [("1", "Ann: hi", ["Hi."], {}), ("3", "Bob: hi", [], {"topic": "x"})]
    with database.read() as connection:
        assert connection.execute(select(datasets.c.mapping)).scalar_one() == {"dialogue": "transcript"}


@pytest.mark.parametrize(
    "text", ["", '{"dialogue": "a"}\n{"dialogue": ""}\n', '{"dialogue": "a"}\n{"dialog', '{"text": "a"}\n']
)
def test_a_file_with_something_wrong_writes_nothing(database: Database, tmp_path: Path, text: str) -> None:
    path = tmp_path / "upload.jsonl"
    path.write_text(text)

    with pytest.raises(InvalidDataset):
        load_dataset_file(database, first_tenant(database), path, name="calls")

    assert [count(database, table) for table in (datasets, dialogues, dataset_rows)] == [0, 0, 0]


@pytest.mark.parametrize("name", ["", " calls", "../calls", "/calls", "a/../b", "a\x00b", "a\nb", "x" * 301])
def test_a_name_that_could_mislead_is_refused(database: Database, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidName):
        load_dataset_file(database, first_tenant(database), tmp_path / "none", name=name)


def test_an_unknown_format_is_refused(database: Database, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="jsonl, csv, parquet"):
        load_dataset_file(database, first_tenant(database), tmp_path / "none", name="calls", format="xml")


def test_many_rows_need_little_time_and_memory(database: Database) -> None:
    def read() -> Iterator[Row]:
        return (Row(number, number + 1, str(number), f"{number % 20_000}: " + "hello there " * 20) for number in range(25_000))

    tracemalloc.start()
    started = time.monotonic()
    view, _ = load_rows(database, new_dataset(database), read, count=25_000)
    seconds = time.monotonic() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (view.rows, view.dialogues) == (25_000, 20_000)
    assert peak < 60_000_000
    assert seconds < 30


def test_transactions_of_a_load_are_as_large_as_others_can_wait_for() -> None:
    pace = loading.Pace()
    assert pace.rows == loading.FIRST_ROWS

    pace.note(1_000, seconds=0.01)
    assert pace.rows == 2_000
    for _ in range(3):
        pace.note(pace.rows, seconds=0.01)
    assert pace.rows == loading.BATCH_ROWS

    pace.note(5_000, seconds=1.0)
    assert pace.rows == 1_000
    pace.note(1_000, seconds=20.0)
    assert pace.rows == loading.LEAST_ROWS


@pytest.mark.parametrize(("seconds", "sizes"), [(0.0, [4, 1, 1, 1, 1, 1, 1]), (1e9, [4, 6])])
def test_a_load_writes_fewer_rows_at_a_time_when_a_transaction_takes_long(
    database: Database, monkeypatch: pytest.MonkeyPatch, seconds: float, sizes: list[int]
) -> None:
    monkeypatch.setattr(loading, "FIRST_ROWS", 4)
    monkeypatch.setattr(loading, "LEAST_ROWS", 1)
    monkeypatch.setattr(loading, "TRANSACTION_S", seconds)
    written: list[int] = []
    ranked: list[int] = []
    write_rows, write_ranks = loads.write_rows, loads.write_ranks

    def count_rows(connection: Connection, lease: Lease, rows: Sequence[Row]) -> Lease:
        written.append(len(rows))
        return write_rows(connection, lease, rows)

    def count_ranks(connection: Connection, lease: Lease, ranking: loads.Ranking, *, stop: int) -> Lease:
        ranked.append(stop - lease.ranked)
        return write_ranks(connection, lease, ranking, stop=stop)

    monkeypatch.setattr(loads, "write_rows", count_rows)
    monkeypatch.setattr(loads, "write_ranks", count_ranks)

    load(database, rows_of([f"row {number}" for number in range(10)]))

    assert written == sizes
    assert ranked == ([10] if seconds else [1] * 10)
