"""SQL over the views."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api.deps import ServiceDep
from gistmill.db.query import run_query
from gistmill.views import QueryView

router = APIRouter(prefix="/v1/query", tags=["query"])


class QueryRequest(BaseModel):
    """A SELECT over the documented views."""

    model_config = ConfigDict(extra="forbid")

    sql: str
    limit: Annotated[int, Field(ge=0, description="Most rows; the server has a limit of its own.")] = 1000


@router.post("")
def query(service: ServiceDep, body: QueryRequest) -> QueryView:
    """Run a SELECT over the views; `truncated` says that rows were left out."""
    limits = service.settings.api
    most = min(body.limit, limits.query_max_rows)
    return run_query(service.database, service.tenant_key, body.sql, limit=most, timeout_s=limits.query_timeout_s)
