"""Create as a stream of progress. A blocking generator: the route runs it in a thread, one item at a time.

What is wrong with a request raises before the first event, so that it gets a status of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from daemon import api
from daemon.errors import BadRequest
from daemon.library import parse_name, shorten
from daemon.parsers.families import family_by_parser, parser_names
from daemon.transfers import Transfers
from engine.any_config import AnyConfig, read_config
from engine.architectures import ARCHITECTURES, BY_GGUF_NAME, BY_HF_CLASS
from engine.conversion.file_types import FileTypeError, parse_file_type
from engine.encoder_architectures import ENCODER_BY_GGUF_NAME, ENCODER_BY_HF_CLASS, ENCODERS
from engine.encoder_config import EncoderConfig
from engine.models.adapter_plan import plan_adapter
from engine.models.encoder_plan import check_encoder_tensors
from engine.models.peft_config import AdapterError
from engine.models.tensor_plan import check_tensors
from engine.text.tokenizer import Tokenizer
from modelfiles.source import ModelSource
from modelfiles.template_choice import RENDERERS, is_renderer
from modelfiles.versions import parse_version
from registry.create import CreateRequest, QuantizeModel, create_model
from registry.errors import ModelNotFound
from registry.name import ModelName
from registry.store import Store


def create_events(
    store: Store, transfers: Transfers, body: api.CreateRequest, quantize: QuantizeModel | None = None
) -> Iterator[api.ProgressResponse]:
    """Make a model as POST /api/create says; a parent that is not here is pulled first.

    Raises:
        BadRequest: the name of the model, of its parent or of the type to quantize to is none; or it is to be remote.
        RegistryError, EngineError: as registry.create.create_model.
    """
    if body.remote_host:
        raise BadRequest("remote_host is set, and Hob serves no other machine's models; leave it out")
    request = CreateRequest(
        name=parse_name(body.model or body.name, "invalid model name"),
        from_name=parse_name(body.from_, f'invalid model name in from: "{shorten(body.from_)}"')
        if body.from_
        else None,
        files=body.files or {},
        adapters=body.adapters or {},
        drafts=body.draft_files or {},
        template=body.template,
        system=body.system,
        parameters=body.parameters,
        messages=None if body.messages is None else [_message(message) for message in body.messages],
        licenses=[body.license] if isinstance(body.license, str) else body.license or [],
        renderer=body.renderer,
        parser=body.parser,
        requires=body.requires,
        info=body.info or {},
        quantize=_file_type(body.quantize or body.quantization or ""),
    )
    _check_names(request)
    if request.from_name and not _is_stored(store, request.from_name):
        yield from _pull_parent(transfers, request.from_name)
    for event in create_model(store, request, check_source, quantize, check_adapter):
        yield api.ProgressResponse(
            status=event.status, digest=event.digest, total=event.total, completed=event.completed
        )


def _pull_parent(transfers: Transfers, name: ModelName) -> Iterator[api.ProgressResponse]:
    events = transfers.pull(name)
    first = next(events)
    for number, event in enumerate(events):
        if number == 0:  # until there is a second one, nobody may have the model, and the request be wrong
            yield first
        if event.status != "success":  # that is said once, of the whole
            yield event


def _is_stored(store: Store, name: ModelName) -> bool:
    try:
        store.resolve(name)
    except ModelNotFound:
        return False
    return True


def _check_names(request: CreateRequest) -> None:
    """Refuse what would be passed over in silence: readers and renderers that nobody knows, and a version to come."""
    if request.parser and family_by_parser(request.parser) is None:
        raise BadRequest(
            f'PARSER "{request.parser[:80]}" is not one that Hob has; it has {", ".join(parser_names())}; '
            "without PARSER, answers are read in the form that the model's template writes"
        )
    if request.renderer and not is_renderer(request.renderer):
        raise BadRequest(
            f'RENDERER "{request.renderer[:80]}" is not known; known are {", ".join(RENDERERS)}; without RENDERER, '
            "prompts are rendered by TEMPLATE or by the chat template of the weights"
        )
    if not request.requires:
        return
    try:
        required = parse_version(request.requires)
    except ValueError as error:
        raise BadRequest(f"REQUIRES: {error}") from error
    if required > parse_version(api.API_VERSION):
        raise BadRequest(
            f"the model requires version {request.requires}, and this Hob does what version {api.API_VERSION} does; "
            "update Hob, or lower REQUIRES"
        )


def _file_type(text: str) -> str:
    try:
        return parse_file_type(text) if text else ""
    except FileTypeError as error:
        raise BadRequest(str(error)) from error


def check_architecture(name: str) -> None:
    """Whether the engine runs an architecture, by what config.json or GGUF metadata call it.

    Raises:
        ValueError: it does not; the message lists those that it runs.
    """
    if not any(name in table for table in (BY_HF_CLASS, BY_GGUF_NAME, ENCODER_BY_HF_CLASS, ENCODER_BY_GGUF_NAME)):
        known = ", ".join(dict.fromkeys([*(row.name for row in ARCHITECTURES), *(row.name for row in ENCODERS)]))
        raise ValueError(f"its architecture is {name[:80]!r}, which is not one that Hob runs; it runs {known}")


def check_source(source: ModelSource) -> None:
    """Whether these files are a model that the engine can load, as far as can be told without reading a tensor.

    Raises:
        ValueError: they are not; the message says what is missing or contradicts what.
    """
    config = read_config(source)
    tokenizer = Tokenizer.from_source(source)
    if isinstance(config, EncoderConfig):
        check_encoder_tensors(config, source)
    else:
        check_tensors(config, source)
    _check_vocabulary(config, tokenizer)


def check_adapter(base: ModelSource, adapter: ModelSource) -> None:
    """Whether an adapter can be applied to these weights, as far as can be told without reading a tensor.

    Raises:
        ValueError: it cannot; the message says why.
    """
    config = read_config(base)
    if isinstance(config, EncoderConfig):
        raise AdapterError("adapters are applied to models that generate text; the base is an encoder")
    plan_adapter(config, adapter)


def _check_vocabulary(config: AnyConfig, tokenizer: Tokenizer) -> None:
    """Whether the model has an embedding for what the tokenizer makes of text.

    Special tokens may lie beyond it as long as no prompt begins or ends with them: the tokenizer of Gemma 3's text
    models knows one for images, just past the embedding. Naming one in a prompt is an error of that request.
    """
    limit = config.vocab_size
    # Counted, not listed: a file may give its only token the id 2 ** 32 - 1.
    num_beyond = tokenizer.vocab_size - limit - sum(token_id >= limit for token_id in tokenizer.special_ids)
    if num_beyond > 0:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's vocab_size is {limit}; the files are of "
            "different models"
        )
    around = max(tokenizer.encode(""), default=0)
    if around >= limit:
        raise ValueError(
            f"the tokenizer puts the token id {around} around each prompt, but the model's vocab_size is {limit}; the "
            "files are of different models"
        )


def _message(message: api.RequestMessage) -> dict[str, str]:
    return {"role": message.role.lower(), "content": message.content or ""}
