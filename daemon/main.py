"""Entry point of `hobd`: settings -> store -> application -> HTTP server in an event loop of our own, and the way out.

The start must be quick (people wait for it at their first command), so nothing here or below imports torch; what takes
time, the spare worker, begins when the daemon already answers.

The end: SIGTERM, SIGINT or POST /api/shutdown close the listening socket, running answers get `drain_s` seconds, then
the workers are closed, which ends what still runs with an error line. A second signal ends at once.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import gc
import logging
import math
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
import uvloop
from starlette.types import ASGIApp

from daemon.app import build_app
from daemon.clock import SystemClock
from daemon.embedding import Embedder
from daemon.generation import Generator as TextGenerator
from daemon.library import Library
from daemon.model_manager import ManagerConfig, ModelManager
from daemon.quantizing import Quantizer
from daemon.services import Services
from daemon.text_models import TextModels
from daemon.transfers import Transfers
from engine.client import EngineClient
from engine.sampling_params import MAX_SEED
from modelfiles.settings import Settings, SettingsError
from registry.builtin_models import install
from registry.errors import RegistryError, StoreLocked
from registry.partials import collect_partials
from registry.store import Store

if TYPE_CHECKING:
    from daemon.remote import Remote

logger = logging.getLogger("hob.daemon")

MAX_HEADER_BYTES = 64 * 1024
"""Of one request's line and headers together; more is answered with 400."""
IDLE_CONNECTION_S = 75
LAST_WORDS_S = 5.0
"""After the grace time: for error lines to leave, before connections are cut."""
BACKLOG = 1024
YOUNG_OBJECTS = 5_000
"""Objects between two collections of garbage. At Python's 700, many streams spend 5 % of the daemon's time so."""
PARTIAL_AGE_S = 7 * 24 * 3600.0
"""What was downloaded of a model that nobody asked for again is kept for so long."""


class StartError(Exception):
    """The daemon cannot start; the message says why and what would help."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the daemon until it is told to end. Exit status 0, or 1 with one sentence on stderr."""
    try:
        options = _parse(arguments)
        settings = Settings.load(os.environ, flags=options.given)
        _configure_logging(settings)
        check_models_folder(settings.models_dir)
        listener = listen(settings)
        uvloop.run(serve(settings, listener, in_background=options.background))
    except (SettingsError, StartError) as error:
        sys.stderr.write(f"Error: {error}\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@dataclass(frozen=True)
class _Options:
    background: bool
    given: dict[str, str]
    """Flags that override settings, by their keys."""


def _parse(arguments: Sequence[str] | None) -> _Options:
    parser = argparse.ArgumentParser("hobd", description="The daemon of Hob: models over HTTP.")
    parser.add_argument("--host", default="", help="address to listen on, with or without a port, as in HOB_HOST")
    parser.add_argument("--port", default="", help="port to listen on; 0 takes a free one")
    parser.add_argument("--models", default="", help="folder of the models, as in HOB_MODELS")
    parser.add_argument(
        "--allow-remote", action="store_true", help="allow an address that other machines reach, without any key"
    )
    parser.add_argument("--background", action="store_true", help="allow POST /api/shutdown to end this daemon")
    parsed = parser.parse_args(arguments)
    flags = {"host": parsed.host, "models": parsed.models, "allow_remote": "1" if parsed.allow_remote else ""}
    if parsed.port:
        # A port beside an address replaces the one that the address may have.
        host = Settings.load(os.environ, flags={"host": parsed.host} if parsed.host else None).host
        flags["host"] = f"[{host}]:{parsed.port}" if ":" in host else f"{host}:{parsed.port}"
    return _Options(parsed.background, {name: value for name, value in flags.items() if value})


def _configure_logging(settings: Settings) -> None:
    level = logging.DEBUG if settings.debug else logging.INFO
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Its messages repeat ours, and its warnings about bad requests would let strangers fill the log.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    for note in settings.notes:
        logger.warning("%s", note)


def check_models_folder(folder: Path) -> None:
    """Make the models folder if there is none yet. One that is there need not be writable: its models can be used.

    Raises:
        StartError: there is none and it cannot be made, or it cannot be read.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.scandir(folder).close()
    except OSError as error:
        reason = "it is no folder" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise StartError(
            f"the models folder {folder} cannot be used: {reason}; name another with --models or HOB_MODELS"
        ) from error


def listen(settings: Settings) -> socket.socket:
    """A listening socket at the settings' address.

    Raises:
        StartError: other machines would reach it and nobody allowed that; or the address cannot be had.
    """
    if not settings.loopback and not settings.allow_remote:
        raise StartError(
            f"{settings.host} can be reached from other machines, and this version of Hob has no access keys; listen "
            "on 127.0.0.1, or set HOB_ALLOW_REMOTE=1 if the network is one that you trust"
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartError(f"cannot listen on {settings.host}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(_bind_failure(settings, error)) from error
    listener.setblocking(False)
    return listener


def _bind_failure(settings: Settings, error: OSError) -> str:
    where = f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        return f"cannot listen on {where}: the port is in use, maybe by another daemon; HOB_HOST sets another address"
    return f"cannot listen on {where}: {error.strerror}"


async def serve(settings: Settings, listener: socket.socket, *, in_background: bool) -> None:
    """Serve on the socket until a signal, or POST /api/shutdown where that is allowed."""
    clock = SystemClock()
    store = Store(settings.models_dir)
    models = ModelManager(EngineClient.start, _manager_config(settings), clock)
    with ExitStack() as stack:
        _prepare_store(stack, store, settings)  # before the loop has anybody to serve
        server: Server | None = None

        def shut_down() -> None:
            assert server is not None
            server.begin_exit()

        services = Services(
            store=store,
            library=Library(store),
            models=models,
            texts=TextModels(models.loaded_tokenizer),
            quantizer=Quantizer(EngineClient.start, num_threads=settings.num_threads),
            transfers=_transfers(stack, store, settings),
            generator=TextGenerator(models, clock, _random_seed, _new_call_id),
            embedder=Embedder(models, clock),
            clock=clock,
            shut_down=shut_down if in_background else None,
        )
        app = build_app(services, loopback=settings.loopback, host_names=[settings.host], origins=settings.origins)
        server = Server(_server_config(app, settings), settings.drain_s, models, lambda: _ready(listener, models))
        gc.freeze()  # what is here now stays, and need not be looked through
        gc.set_threshold(YOUNG_OBJECTS)
        try:
            await server.serve(sockets=[listener])
        finally:
            await models.close()
            services.generator.close()
    logger.info("ended")


class Server(uvicorn.Server):
    """uvicorn with our own way out."""

    def __init__(
        self, config: uvicorn.Config, drain_s: float, models: ModelManager, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._drain_s = drain_s
        self._models = models
        self._on_ready = on_ready
        self._closing: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        # Handlers of the loop, since uvicorn's own would raise the signal again at the end: the exit status is 0.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.begin_exit)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def begin_exit(self) -> None:
        """Stop accepting and let answers finish; called a second time, end at once."""
        if self.should_exit:
            self.force_exit = True
            self._close_models()
            return
        logger.info("shutting down: no new requests, up to %g s for those that run", self._drain_s)
        self.should_exit = True
        asyncio.get_running_loop().call_later(self._drain_s, self._close_models)

    def _close_models(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._models.close())


def _server_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        # h11 rather than httptools: it is strict about framing and bounds the headers; the price, 5 us a chunk more,
        # is 2 % of a core at 3,000 chunks/s.
        http="h11",
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=IDLE_CONNECTION_S,
        timeout_graceful_shutdown=None if math.isinf(settings.drain_s) else math.ceil(settings.drain_s + LAST_WORDS_S),
    )


def _manager_config(settings: Settings) -> ManagerConfig:
    return ManagerConfig(
        keep_alive_s=settings.keep_alive_s,
        load_timeout_s=settings.load_timeout_s,
        context_length=settings.context_length,
        max_queue=settings.max_queue,
        max_loaded=settings.max_loaded_models,
        num_threads=settings.num_threads,
        device=settings.device,
        dtype=settings.dtype,
        weight_type=settings.weight_type,
        kv_cache_type=settings.kv_cache_type,
        model_memory_bytes=settings.model_memory_bytes,
        gpu_overhead_bytes=settings.gpu_overhead_bytes,
        spare_worker=settings.spare_worker,
    )


def _transfers(stack: ExitStack, store: Store, settings: Settings) -> Transfers:
    def connect() -> Remote:
        from daemon.remote import open_remote  # see there why not before

        return open_remote(store, settings.max_transfer_streams)

    transfers = Transfers(store, connect)
    stack.callback(transfers.close, LAST_WORDS_S)
    return transfers


def _prepare_store(stack: ExitStack, store: Store, settings: Settings) -> None:
    """Claim the store, clean it up, and put the built-in models into it. Whatever fails, what is stored can be used."""
    try:
        stack.enter_context(store.claim())
        if settings.prune:
            store.collect_garbage(keep=collect_partials(store, PARTIAL_AGE_S))
        install(store)
    except StoreLocked as error:
        logger.warning("%s; this one leaves cleaning up to it", error)
    except RegistryError as error:
        logger.warning("the models folder could not be prepared: %s", error)


def _ready(listener: socket.socket, models: ModelManager) -> None:
    host, port = listener.getsockname()[:2]
    logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    models.start_spare()


def _random_seed() -> int:
    return secrets.randbelow(MAX_SEED)


def _new_call_id() -> str:
    return f"call_{secrets.token_hex(4)}"


if __name__ == "__main__":
    main()
