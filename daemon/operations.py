"""The table of the REST API: a row for each route, from which `/openapi.json` is made.

A test compares it with the routes in both directions, so a route without a row fails there, as a row without a route
does. What holds for every route (403 for strange hosts and origins, 500) or for every JSON body (400, 413, 415) is
added by daemon.openapi and stands in no row. HEAD goes with GET and has no row of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from daemon import api
from daemon.anthropic import types as anthropic_types
from daemon.anthropic.errors import AnthropicErrorBody
from daemon.openai import api as openai_api
from daemon.openai.embeddings_api import EmbeddingsRequest, EmbeddingsResponse
from daemon.openai.errors import OpenAIErrorBody
from daemon.openai.responses_api import InputTokens, Response, ResponsesRequest, StreamEvent

NDJSON = "application/x-ndjson"
EVENTS = "text/event-stream"
NO_CLOUD = "Refused: Hob has no cloud"
NOTHING_KEPT = "Nothing is kept between requests"


@dataclass(frozen=True)
class Operation:
    """What one method of one path takes and gives."""

    method: str
    path: str
    summary: str
    body: type | None = None
    """A struct is JSON, `bytes` any octets, None nothing."""
    reply: type | None = None
    """A struct is JSON, `str` plain text, None an empty body."""
    errors: tuple[int, ...] = ()
    """Statuses of its own, beside those that all have."""
    stream: str = ""
    """Media type of the reply where it comes in pieces; `reply` is then one piece, unless there is a `chunk`."""
    chunk: Any = None
    """A piece of a stream that is of another type than the whole reply."""
    is_always_stream: bool = False
    successes: tuple[int, ...] = (200,)
    error: type = api.ErrorReply
    tag: str = ""
    """Whose API it belongs to."""


ollama = partial(Operation, tag="Ollama")
hob = partial(Operation, tag="Hob")
openai = partial(Operation, tag="OpenAI", error=OpenAIErrorBody)
anthropic = partial(Operation, tag="Anthropic", error=AnthropicErrorBody)

OLLAMA = (
    ollama("GET", "/", "Whether something answers here", reply=str),
    ollama("GET", "/api/version", "The level of the API, and the daemon's own version", reply=api.VersionResponse),
    ollama("GET", "/api/status", "Whether models run elsewhere: they do not", reply=api.StatusResponse),
    ollama("POST", "/api/generate", "Continue a prompt", api.GenerateRequest, api.GenerateResponse, (404, 503), NDJSON),
    ollama("POST", "/api/chat", "The next message of a talk", api.ChatRequest, api.ChatResponse, (404, 503), NDJSON),
    ollama("POST", "/api/embed", "Vectors of texts", api.EmbedRequest, api.EmbedResponse, (404, 503)),
    ollama(
        "POST", "/api/embeddings", "The vector of a text", api.EmbeddingsRequest, api.EmbeddingsResponse, (404, 503)
    ),
    ollama("GET", "/api/tags", "Models that are stored", reply=api.ListResponse),
    ollama("GET", "/api/ps", "Models that are loaded", reply=api.ProcessResponse),
    ollama("POST", "/api/show", "All about a model", api.ShowRequest, api.ShowResponse, (404,)),
    ollama(
        "POST", "/api/create", "Make a model", api.CreateRequest, api.ProgressResponse, (404, 409, 502, 507), NDJSON
    ),
    ollama("POST", "/api/copy", "Give a model a second name", api.CopyRequest, None, (404, 409, 507)),
    ollama("DELETE", "/api/delete", "Remove a model", api.DeleteRequest, None, (404, 409)),
    ollama("POST", "/api/pull", "Bring a model here", api.PullRequest, api.ProgressResponse, (404, 502, 507), NDJSON),
    ollama("POST", "/api/push", "Send a model away", api.PullRequest, api.ProgressResponse, (404, 502), NDJSON),
    ollama("HEAD", "/api/blobs/{digest}", "Whether a file is here", errors=(400, 404)),
    ollama("POST", "/api/blobs/{digest}", "Send a file", bytes, errors=(400, 404, 409, 507), successes=(200, 201)),
    ollama("POST", "/api/me", NO_CLOUD, successes=()),
    ollama("POST", "/api/signout", NO_CLOUD, successes=()),
    ollama("DELETE", "/api/user/keys/{key}", NO_CLOUD, successes=()),
    ollama("POST", "/api/experimental/web_search", NO_CLOUD, successes=()),
    ollama("POST", "/api/experimental/web_fetch", NO_CLOUD, successes=()),
    ollama("GET", "/api/experimental/model-recommendations", NO_CLOUD, successes=()),
)

HOB = (
    hob("GET", "/healthz", "Whether the daemon is well", reply=api.HealthResponse),
    hob("GET", "/openapi.json", "This description", reply=dict),
    hob("POST", "/api/shutdown", "End the daemon", reply=api.HealthResponse, errors=(409,)),
    hob("POST", "/api/tokenize", "Text to token ids", api.TokenizeRequest, api.TokenizeResponse, (404,)),
    hob("POST", "/api/detokenize", "Token ids to text", api.DetokenizeRequest, api.DetokenizeResponse, (404,)),
    hob("POST", "/api/rerank", "Order documents by a query", api.RerankRequest, api.RerankResponse, (404, 503)),
    hob("POST", "/api/search", "Look through the catalog", api.SearchRequest, api.SearchResponse),
    hob("POST", "/api/remote-tags", "Variants to pull", api.PullRequest, api.RemoteTagsResponse, (404, 502)),
    hob(
        "POST", "/api/fsck", "Read the store", api.FsckRequest, api.FsckResponse, (409,), NDJSON, is_always_stream=True
    ),
    hob("POST", "/api/importable", "Models of other programs", api.ImportRequest, api.ImportableResponse, (404,)),
    hob("POST", "/api/import", "Take one over", api.ImportRequest, api.ProgressResponse, (404, 409, 507), NDJSON),
)

OPENAI = (
    openai(
        "POST", "/v1/chat/completions", "The next message of a talk", openai_api.ChatRequest, openai_api.ChatCompletion,
        (404, 503), EVENTS, chunk=openai_api.ChatCompletionChunk,
    ),
    openai(
        "POST", "/v1/completions", "Continue texts", openai_api.CompletionRequest, openai_api.Completion,
        (404, 503), EVENTS,
    ),
    openai(
        "POST", "/v1/responses", "Respond to items", ResponsesRequest, Response, (404, 503), EVENTS, chunk=StreamEvent
    ),
    openai("POST", "/v1/responses/input_tokens", "Count a prompt's tokens", ResponsesRequest, InputTokens, (404,)),
    openai("GET", "/v1/responses/{response_id}", NOTHING_KEPT, errors=(404,), successes=()),
    openai("POST", "/v1/responses/{response_id}", NOTHING_KEPT, errors=(404,), successes=()),
    openai("DELETE", "/v1/responses/{response_id}", NOTHING_KEPT, errors=(404,), successes=()),
    openai("GET", "/v1/models", "Models that are stored", reply=openai_api.ModelList),
    openai("GET", "/v1/models/{model}", "A model that is stored", reply=openai_api.Model, errors=(400, 404)),
    openai(
        "POST", "/v1/embeddings", "Vectors of texts", EmbeddingsRequest, EmbeddingsResponse,
        (404, 503),
    ),
    openai("POST", "/v1/rerank", "Order documents by a query", api.RerankRequest, api.RerankResponse, (404, 503)),
)  # fmt: skip

ANTHROPIC = (
    anthropic(
        "POST", "/v1/messages", "The next message of a talk", anthropic_types.MessagesRequest,
        anthropic_types.MessageReply, (404, 503), EVENTS, chunk=anthropic_types.StreamEvent,
    ),
    anthropic(
        "POST", "/v1/messages/count_tokens", "Count a prompt's tokens", anthropic_types.Conversation,
        anthropic_types.TokensCount, (404,),
    ),
)  # fmt: skip

OPERATIONS = (*OLLAMA, *HOB, *OPENAI, *ANTHROPIC)
