"""/api/rerank and /v1/rerank: documents by their relevance to a query, with the words of Jina's and Cohere's APIs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from starlette.requests import Request
from starlette.routing import Route

from daemon import api
from daemon.bodies import read
from daemon.embedding import MAX_INPUTS, Ranking, RerankJob
from daemon.errors import BadRequest
from daemon.extensions import read_extensions
from daemon.options import Options
from daemon.services import Services
from daemon.streaming import JSONReply

CAPABILITIES = frozenset({"rerank", "embedding"})
"""Of models that can rerank: cross-encoders, and those whose vectors can be compared."""


def routes(services: Services) -> list[Route]:
    """The routes of this file."""
    return [
        Route(path, partial(_rerank, services), methods=["POST"]) for path in ("/api/rerank", "/v1/rerank")
    ]  # fmt: skip


async def _rerank(services: Services, request: Request) -> JSONReply:
    body = await read(request, api.RerankRequest)
    documents = _documents(body)
    if body.top_n is not None and body.top_n < 1:
        raise BadRequest(f"top_n is {body.top_n}; it must be at least 1, or left out for all documents", "top_n")
    own = read_extensions(body.options, body.keep_alive)
    stored = await services.library.find_valid(body.model)
    job = RerankJob(
        stored=stored,
        query=body.query or "",
        documents=documents,
        options=own.options,
        keep_alive_s=own.keep_alive_s,
        truncate=body.truncate is not False and own.truncate is not False,
    )
    Options.merge(stored.params, own.options)
    if not CAPABILITIES.intersection((await services.library.describe(stored)).capabilities):
        raise BadRequest(f'"{body.model}" does not support rerank', "model")

    async def reply() -> api.RerankResponse:
        ranking = await services.embedder.rerank(job)
        shown = documents if body.return_documents else ()
        return api.RerankResponse(
            model=body.model or "",
            results=_results(ranking, shown, body.top_n or len(documents)),
            usage=api.TokenUsage(prompt_tokens=ranking.num_tokens, total_tokens=ranking.num_tokens),
            total_duration=ranking.total_ns,
            load_duration=ranking.load_ns,
            truncated=ranking.is_truncated,
        )

    return JSONReply(reply())


def _documents(body: api.RerankRequest) -> list[str]:
    """
    Raises:
        BadRequest: query or documents are missing, or there are too many.
    """
    if not body.query:
        raise BadRequest("query is required: the text that the documents are compared with", "query")
    if not body.documents:
        raise BadRequest("documents is required: a list of at least one text", "documents")
    if len(body.documents) > MAX_INPUTS:
        raise BadRequest(f"documents holds {len(body.documents)} texts; the limit is {MAX_INPUTS}", "documents")
    return [document if isinstance(document, str) else document.text for document in body.documents]


def _results(ranking: Ranking, documents: Sequence[str], top_n: int) -> list[api.RerankResult]:
    """The best first; equal ones in the order of the request."""
    order = sorted(range(len(ranking.scores)), key=lambda index: -ranking.scores[index])
    return [
        api.RerankResult(
            index=index,
            relevance_score=ranking.scores[index],
            document=api.RankedDocument(text=documents[index]) if documents else None,
        )
        for index in order[:top_n]
    ]
