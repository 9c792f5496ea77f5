"""Adapters in SQL: what references mean, what jobs run, other names, removal, lineage, and what a job publishes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select, update

from gistmill.db import aliases, lineage, models, removal
from gistmill.db.claim import Claim
from gistmill.db.models import Lease, ModelParts, ModelVersion
from gistmill.db.session import Database
from gistmill.db.tables import chunks, jobs
from gistmill.db.tables import models as model_table
from gistmill.errors import Conflict, InvalidInput, LeaseLost, NameTaken, UnknownJob, UnknownModel, UnsupportedModel
from gistmill.specs import combined_digest, digest_of
from gistmill.views import ModelView
from tests.support.hands import claimed
from tests.support.jobs import job_row, make_job

MANIFEST = {"architecture": "T5ForConditionalGeneration", "parameters": 5, "dtype": "float32"}
ORIGIN = {"dataset": "calls", "dataset_digest": "d" * 64, "base": "small@1", "base_digest": "small-1", "prompt": "instruction"}


def add(
    database: Database, name: str, digest: str, *, base: str | None = None, tenant_key: int = 1, source: str = "upload"
) -> ModelView:
    kind: Any = "model" if base is None else "adapter"
    manifest = MANIFEST | {"parameters": 5 if base is None else 1}
    return models.register(
        database,
        tenant_key,
        manifest,
        name=name,
        digest=digest,
        weight_bytes=20 if base is None else 4,
        source=source,
        kind=kind,
        base_digest=base,
    )


@pytest.fixture
def shelf(database: Database) -> Database:
    """Two bases, the first with two versions; an adapter of each version of the first, and one of the second base."""
    for digest in ("small-1", "small-2"):
        add(database, "small", digest)
    add(database, "large", "large-1")
    for digest, base in (("lora-1", "small-1"), ("lora-2", "small-2"), ("lora-3", "small-2")):
        add(database, "lora", digest, base=base)
    add(database, "other", "other-1", base="large-1")
    return database


def claim_new(database: Database, text: str) -> Claim:
    """Claim the chunk of a new job."""
    make_job(database, [text])
    return claimed(database)


def parts(version: ModelVersion) -> tuple[str, str | None]:
    return version.base_digest, version.adapter_digest


@pytest.mark.parametrize(
    ("reference", "wanted"),
    [
        ("small", ("small-2", None)),
        ("small@1", ("small-1", None)),
        ("lora", ("small-2", "lora-3")),
        ("lora@1", ("small-1", "lora-1")),
        ("small+lora", ("small-2", "lora-3")),
        ("small+lora@1", ("small-1", "lora-1")),
        ("small@1+lora", ("small-1", "lora-1")),
        ("small@2+lora@2", ("small-2", "lora-2")),
        ("google/small+lora", ("small-2", "lora-3")),
        ("small-1", ("small-1", None)),
        ("lora-1", ("small-1", "lora-1")),
        ("small-1+lora-1", ("small-1", "lora-1")),
    ],
)
def test_reference_means_a_base_and_perhaps_an_adapter(shelf: Database, reference: str, wanted: tuple[str, str | None]) -> None:
    version = models.resolve(shelf, 1, reference)
    assert parts(version) == wanted
    assert models.parts_of(shelf, version.key) == ModelParts(*wanted)


def test_digest_of_a_job_stands_for_both_parts(shelf: Database) -> None:
    version = models.resolve(shelf, 1, "small+lora@1")
    assert version.digest == digest_of({"base": "small-1", "adapter": "lora-1"}) == combined_digest("small-1", "lora-1")
    assert (version.name, version.version, version.weight_bytes, version.manifest["parameters"]) == ("lora", 1, 24, 5)
    plain = models.resolve(shelf, 1, "small@1")
    assert (plain.digest, plain.weight_bytes) == ("small-1", 20)
    assert combined_digest("small-1", None) == "small-1"


@pytest.mark.parametrize(
    ("reference", "kind", "match"),
    [
        ("large+lora", InvalidInput, r"adapter lora@3 was made for small@2, not for large@1\. Write small@2\+lora@3\.$"),
        ("small@1+lora@2", InvalidInput, "lora@2 was made for small@2, not for small@1"),
        ("small+other", InvalidInput, "other@1 was made for large@1"),
        ("lora+lora", UnsupportedModel, "'lora' is itself an adapter"),
        ("small+large", UnsupportedModel, "'large' is a whole model and no adapter"),
        ("small+lorra", UnknownModel, r"no model 'lorra'\. Did you mean 'lora'\?"),
        ("smal+lora", UnknownModel, r"no model 'smal'\. Did you mean 'small'\?"),
        ("small+lora@9", UnknownModel, "no model 'lora@9'"),
        ("small+", UnknownModel, "no model ''"),
        ("+lora", UnknownModel, "no model ''"),
        ("small+lora+lora", UnknownModel, "no model 'lora"),
    ],
)
def test_reference_whose_parts_do_not_go_together_is_refused(
    shelf: Database, reference: str, kind: type[Exception], match: str
) -> None:
    with pytest.raises(kind, match=match):
        models.resolve(shelf, 1, reference)
    with pytest.raises(kind, match=match):
        models.get_model(shelf, 1, reference)


def test_base_of_the_same_files_under_another_name_will_do(shelf: Database) -> None:
    add(shelf, "copy", "small-1")
    assert parts(models.resolve(shelf, 1, "copy+lora@1")) == ("small-1", "lora-1")


def test_adapters_of_other_tenants_are_not_there(shelf: Database) -> None:
    for reference in ("lora", "small+lora", "small"):
        with pytest.raises(UnknownModel):
            models.resolve(shelf, 2, reference)
    with pytest.raises(UnknownModel):
        models.parts_of(shelf, 10**6)


def test_adapter_is_shown_with_its_base(shelf: Database) -> None:
    view = models.get_model(shelf, 1, "small+lora@1")
    assert (view.name, view.kind, view.base, view.base_digest, view.parameters) == ("lora", "adapter", "small@1", "small-1", 1)
    assert models.get_model(shelf, 1, "small").base is None
    listed = {f"{view.name}@{view.version}": view.base for view in models.list_models(shelf, 1).data}
    assert listed["lora@2"] == "small@2"
    assert len(listed) == 7


def test_versions_of_an_adapter_count_by_files_and_base(shelf: Database) -> None:
    assert add(shelf, "lora", "lora-1", base="small-1").version == 1
    assert add(shelf, "lora", "lora-1", base="large-1").version == 4


def test_name_belongs_to_one_kind(shelf: Database) -> None:
    with pytest.raises(NameTaken, match="'small' is the name of a model already"):
        add(shelf, "small", "lora-9", base="small-1")
    with pytest.raises(NameTaken, match="'lora' is the name of an adapter already"):
        add(shelf, "lora", "x")
    aliases.set_alias(shelf, 1, "live", "small")
    with pytest.raises(NameTaken, match=r"'live' is an alias.*models alias live --delete"):
        add(shelf, "live", "x")
    assert models.is_registered(shelf, 1, name="small", digest="small-1")
    assert not models.is_registered(shelf, 1, name="small", digest="large-1")


def test_alias_means_one_version_until_it_is_moved(shelf: Database) -> None:
    assert aliases.set_alias(shelf, 1, "live", "small+lora@1").aliases == ["live"]
    add(shelf, "lora", "lora-9", base="small-1")
    for reference in ("live", "small+live", "small@1+live"):
        assert parts(models.resolve(shelf, 1, reference)) == ("small-1", "lora-1")
    aliases.set_alias(shelf, 1, "live", "small@2")
    assert parts(models.resolve(shelf, 1, "live")) == ("small-2", None)
    assert parts(models.resolve(shelf, 1, "live+lora@2")) == ("small-2", "lora-2")
    assert models.get_model(shelf, 1, "lora@1").aliases == []
    for reference in ("live@1", "lives"):
        with pytest.raises(UnknownModel):
            models.resolve(shelf, 1, reference)
    aliases.delete_alias(shelf, 1, "live")
    with pytest.raises(UnknownModel):
        models.resolve(shelf, 1, "live")
    with pytest.raises(UnknownModel, match="There is no alias 'live'"):
        aliases.delete_alias(shelf, 1, "live")


def test_alias_may_not_be_the_name_of_a_model_or_mean_nothing(shelf: Database) -> None:
    with pytest.raises(NameTaken, match="There is a model 'small'"):
        aliases.set_alias(shelf, 1, "small", "large")
    with pytest.raises(UnknownModel):
        aliases.set_alias(shelf, 1, "live", "nosuch")
    with pytest.raises(UnknownModel):
        aliases.set_alias(shelf, 2, "live", "small")


def test_removed_version_is_offered_to_no_new_job(shelf: Database) -> None:
    key = models.resolve(shelf, 1, "lora@3").key
    assert removal.remove_model(shelf, 1, "lora@3").removed_at is not None
    assert parts(models.resolve(shelf, 1, "small+lora")) == ("small-2", "lora-2")
    assert "lora@3" not in {f"{view.name}@{view.version}" for view in models.list_models(shelf, 1).data}
    for reference in ("lora@3", "lora-3"):
        with pytest.raises(UnknownModel):
            models.resolve(shelf, 1, reference)
    # What ran with it is still found: its files, by digest and by key.
    assert models.find_digest(shelf, 1, "lora-3") is not None
    assert models.parts_of(shelf, key) == ("small-2", "lora-3")
    assert models.is_registered(shelf, 1, name="lora", digest="lora-3")
    with pytest.raises(UnknownModel):
        removal.remove_model(shelf, 1, "lora@3")
    assert add(shelf, "lora", "lora-3", base="small-2").version == 4


def test_removing_needs_one_version(shelf: Database) -> None:
    for reference in ("lora", "small+lora@1", "small@1+lora"):
        with pytest.raises(InvalidInput, match="write NAME@VERSION"):
            removal.remove_model(shelf, 1, reference)


def test_version_in_use_is_not_removed(shelf: Database) -> None:
    with pytest.raises(Conflict, match=r"The adapter lora@1 stands on small@1\. Remove the adapter first"):
        removal.remove_model(shelf, 1, "small@1")
    key = models.resolve(shelf, 1, "lora@1").key
    job = make_job(shelf, ["a"], model_key=key)
    with pytest.raises(Conflict, match=rf"The job {job_row(shelf, job)['id']} uses lora@1"):
        removal.remove_model(shelf, 1, "lora@1")
    shelf.transact(lambda connection: connection.execute(update(jobs).where(jobs.c.key == job).values(state="cancelled")))
    aliases.set_alias(shelf, 1, "live", "lora@1")
    with pytest.raises(Conflict, match="The alias 'live' means lora@1"):
        removal.remove_model(shelf, 1, "lora@1")
    aliases.delete_alias(shelf, 1, "live")
    removal.remove_model(shelf, 1, "lora@1")
    assert removal.remove_model(shelf, 1, "small@1").name == "small"


def test_base_whose_files_have_another_name_may_be_removed(shelf: Database) -> None:
    add(shelf, "copy", "small-1")
    removal.remove_model(shelf, 1, "small@1")
    assert models.get_model(shelf, 1, "lora@1").base == "copy@1"
    assert parts(models.resolve(shelf, 1, "copy+lora@1")) == ("small-1", "lora-1")
    with pytest.raises(Conflict):
        removal.remove_model(shelf, 1, "copy@1")


@pytest.fixture
def lease(shelf: Database) -> Lease:
    """A worker's lease on the only chunk of a job."""
    claim = claim_new(shelf, "a")
    return Lease(claim.job_id, claim.chunk_key, claim.epoch)


def publish(
    database: Database, lease: Lease, *, name: str = "tuned", digest: str = "tuned-1", base: str | None = "small-1"
) -> ModelView:
    return models.register_for_job(
        database,
        1,
        MANIFEST,
        lease,
        name=name,
        digest=digest,
        weight_bytes=4,
        kind="model" if base is None else "adapter",
        base_digest=base,
        lineage=ORIGIN,
    )


def versions(database: Database, name: str) -> int:
    query = select(func.count()).where(model_table.c.name == name)
    with database.read() as connection:
        return int(connection.execute(query).scalar_one())


def test_job_publishes_once(shelf: Database, lease: Lease) -> None:
    first = publish(shelf, lease)
    assert (first.name, first.version, first.job, first.lineage, first.base) == ("tuned", 1, lease.job_id, ORIGIN, "small@1")
    assert first.source == f"job:{lease.job_id}"
    assert publish(shelf, lease, digest="tuned-2") == first
    assert versions(shelf, "tuned") == 1
    assert parts(models.resolve(shelf, 1, "small+tuned")) == ("small-1", "tuned-1")
    with shelf.read() as connection:
        assert connection.scalar(select(chunks.c.progressed).where(chunks.c.key == lease.chunk_key))


def test_publications_of_one_job_at_once_are_one(shelf: Database, lease: Lease) -> None:
    with ThreadPoolExecutor(4) as pool:
        views = list(pool.map(lambda digest: publish(shelf, lease, digest=digest), "abcd"))
    assert len({view.digest for view in views}) == 1
    assert versions(shelf, "tuned") == 1


def test_equal_files_of_two_jobs_are_two_versions(shelf: Database, lease: Lease) -> None:
    publish(shelf, lease)
    claim = claim_new(shelf, "b")
    assert publish(shelf, Lease(claim.job_id, claim.chunk_key, claim.epoch)).version == 2


def test_worker_that_lost_its_chunk_publishes_nothing(shelf: Database, lease: Lease) -> None:
    others = claim_new(shelf, "b")
    for lost in (
        Lease(lease.job_id, lease.chunk_key, lease.epoch + 1),
        Lease(lease.job_id, lease.chunk_key, lease.epoch - 1),
        Lease(lease.job_id, others.chunk_key, others.epoch),
        Lease(lease.job_id, 10**6, 1),
    ):
        with pytest.raises(LeaseLost):
            publish(shelf, lost)
    with pytest.raises(UnknownJob):
        publish(shelf, Lease("job_nosuch", lease.chunk_key, lease.epoch))
    shelf.transact(
        lambda connection: connection.execute(update(chunks).where(chunks.c.key == lease.chunk_key).values(state="queued"))
    )
    with pytest.raises(LeaseLost):
        publish(shelf, lease)
    assert versions(shelf, "tuned") == 0


def test_publication_of_a_lost_lease_does_not_give_what_another_published(shelf: Database, lease: Lease) -> None:
    publish(shelf, lease)
    with pytest.raises(LeaseLost):
        publish(shelf, Lease(lease.job_id, lease.chunk_key, lease.epoch - 1))


def test_job_may_not_take_the_name_of_the_other_kind(shelf: Database, lease: Lease) -> None:
    with pytest.raises(NameTaken):
        publish(shelf, lease, name="small")
    assert publish(shelf, lease, name="small", base=None).version == 3


def test_lineage_goes_back_to_what_was_added(shelf: Database, lease: Lease) -> None:
    publish(shelf, lease, name="tuned", digest="tuned-1", base=None)
    add(shelf, "on-tuned", "lora-9", base="tuned-1")
    chain = lineage.list_lineage(shelf, 1, "tuned+on-tuned").data
    assert [f"{view.name}@{view.version}" for view in chain] == ["on-tuned@1", "tuned@1", "small@1"]
    assert [view.job for view in chain] == [None, lease.job_id, None]
    assert chain[1].lineage == ORIGIN
    with pytest.raises(Conflict):
        removal.remove_model(shelf, 1, "tuned@1")
    assert [view.name for view in lineage.list_lineage(shelf, 1, "small").data] == ["small"]
