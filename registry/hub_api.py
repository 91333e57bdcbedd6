"""What the Hugging Face hub says about a repository: its commit and its files, asked through huggingface_hub.

huggingface_hub knows the protocol, HF_ENDPOINT, HF_TOKEN and the token that `hf auth login` saved. Its requests go
through `registry.transport` like all others, so that they have the same limits, proxies and care with redirects. What
comes back is checked before it is used. Bytes of files are fetched by `registry.hub`, not here.

huggingface_hub keeps one HTTP client for a process; making a HubAPI puts ours there, so make one of a kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpx2
import huggingface_hub  # imports little; HfApi and what it needs come with the first request (0.1 s)
from huggingface_hub import constants, errors
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # exported where mypy does not look

from registry.addresses import Reach, literal_reach
from registry.errors import InvalidDigest, RemoteDenied, RemoteError, RemoteNotFound
from registry.hub_files import HubFile
from registry.manifest import MAX_LAYERS, Digest
from registry.reply import MAX_ERROR_BYTES, TEMPORARY, Reply
from registry.transport import Transport, parse_url

MAX_INFO_BYTES = 16 * 1024 * 1024
"""Longest description of a repository that is read; 40,000 files fit into it."""
ANSWER = "a description of a repository"
HEADERS_OF_ERRORS = ("content-type", "x-error-code", "x-error-message")

_IS_INSECURE: ContextVar[bool] = ContextVar("hub_is_insecure", default=False)
"""What the bridge below cannot be told otherwise: huggingface_hub makes the request in between."""


@dataclass(frozen=True)
class Repository:
    """A repository at one commit."""

    name: str
    """With its owner: "Qwen/Qwen3-8B-GGUF"."""
    commit: str
    """sha1 in hexadecimal digits; every file is fetched at it."""
    is_gated: bool
    """Whether people must accept conditions before they get its files."""
    files: tuple[HubFile, ...]
    hf_architecture: str = ""
    """What config.json names, as the hub read it; "" where it did not say."""
    gguf_architecture: str = ""
    """The same of a GGUF file's metadata."""


class HubAPI:
    """Asks a hub.

    Args:
        endpoint: its address; "" takes HF_ENDPOINT or https://huggingface.co.
        token: who asks; None takes what huggingface_hub finds (HF_TOKEN, or a saved one) and "" nobody.
    """

    def __init__(self, transport: Transport, *, endpoint: str = "", token: str | None = None) -> None:
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._token = token
        constants.HF_HUB_DISABLE_TELEMETRY = True  # it would ask the hub for a list of programs to tell apart
        bridge = _Bridge(transport)
        huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=bridge, trust_env=False))

    @property
    def host(self) -> str:
        """What messages call the hub."""
        return parse_url(self.endpoint).netloc.decode("ascii")

    def token(self) -> str:
        """Who asks, "" for nobody.

        Raises:
            RemoteDenied: a saved token cannot be read or renewed.
        """
        token = self._token
        if token is None and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
            try:
                token = huggingface_hub.get_token()
            except (OSError, ValueError, errors.OIDCError, errors.DeviceCodeError) as error:
                raise RemoteDenied("the saved token for the hub cannot be used; run `hf auth login` again") from error
        if token and not re.fullmatch("[!-~]+", token):
            raise RemoteDenied("HF_TOKEN, or the saved token, has characters that no token of the hub has")
        return token or ""

    def url(self, repository: Repository, path: str) -> str:
        """Where a file's bytes are."""
        return huggingface_hub.hf_hub_url(repository.name, path, revision=repository.commit, endpoint=self.endpoint)

    def repository(self, name: str, revision: str, *, token: str, insecure: bool) -> Repository:
        """Ask once for a repository.

        Args:
            revision: a branch, a tag or a commit; "" is the main branch.
            token: what `token` gave.
            insecure: whether plain HTTP and certificates that cannot be verified will do.

        Raises:
            RemoteNotFound: there is none that the token may see, or it has no such revision.
            RemoteDenied: the hub wants another token.
            RemoteError: it cannot be reached, or answers what cannot be used.
        """
        self._check_endpoint(insecure)
        api = huggingface_hub.HfApi(self.endpoint, token=token or False)
        with self._sentences(name, revision, bool(token)):
            reset = _IS_INSECURE.set(insecure)
            try:
                info = api.model_info(name, revision=revision or None, files_metadata=True)
            finally:
                _IS_INSECURE.reset(reset)
        return self._checked(info, name, revision)

    def _check_endpoint(self, insecure: bool) -> None:
        if constants.is_offline_mode():
            raise RemoteError("HF_HUB_OFFLINE is set, so the hub is not asked; unset it to pull from there")
        try:
            url = parse_url(self.endpoint)
        except RemoteError as error:
            raise RemoteError(
                "HF_ENDPOINT must be an address such as https://huggingface.co, without a user name"
            ) from error
        if url.scheme == "http" and literal_reach(url.host) is not Reach.MACHINE and not insecure:
            raise RemoteError(
                f"HF_ENDPOINT is plain http at {self.host}, where anybody on the way could read and change what is "
                "sent; use https, or allow it with --insecure"
            )

    @contextmanager
    def _sentences(self, name: str, revision: str, has_token: bool) -> Iterator[None]:
        """Turn what huggingface_hub raises inside the block into RemoteErrors."""
        try:
            yield
        except errors.HFValidationError as error:
            raise RemoteNotFound(f"{name} cannot be a repository of {self.host}: {error}") from error
        except errors.RevisionNotFoundError as error:
            raise RemoteNotFound(
                f"{name} has no revision {revision!r}; it may be a branch, a tag or a commit"
            ) from error
        except errors.GatedRepoError as error:
            raise RemoteDenied(f"{name} is gated: {self.conditions(name)}") from error
        except errors.DisabledRepoError as error:
            raise RemoteDenied(f"{self.host} has disabled the repository {name}") from error
        except errors.HfHubHTTPError as error:
            raise self._refusal(error.response.status_code, name, has_token) from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise self._nonsense(name) from error

    def _refusal(self, status: int, name: str, has_token: bool) -> RemoteError:
        # Asked by nobody, the hub answers 401 for what it does not have and for what is private alike.
        if status == 404 or (status == 401 and not has_token):
            who = "that the token of HF_TOKEN may see" if has_token else "that is public"
            remedy = "" if has_token else "; for a private one set HF_TOKEN where the daemon runs"
            return RemoteNotFound(f"{self.host} has no repository {name} {who}{remedy}")
        if status == 401:
            return RemoteDenied(
                f"{self.host} does not accept the token (HTTP 401); set HF_TOKEN to a valid one, which "
                f"{self.endpoint}/settings/tokens makes"
            )
        if status == 403:
            return RemoteDenied(f"{self.host} denies access to {name} (HTTP 403): {self.conditions(name)}")
        return RemoteError(f"{self.host} refuses to describe {name} (HTTP {status})")

    def conditions(self, name: str) -> str:
        """What to do to get the files of a gated repository."""
        return (
            f"accept its conditions at {self.endpoint}/{name}, and set HF_TOKEN to a token of the account that did "
            "where the daemon runs"
        )

    def _nonsense(self, name: str) -> RemoteError:
        return RemoteError(f"{self.host} answers for {name} what is no description of a repository")

    def _checked(self, info: Any, name: str, revision: str) -> Repository:
        """The answer, of which huggingface_hub checks nothing."""
        commit, siblings = info.sha, info.siblings
        if not isinstance(commit, str) or not re.fullmatch("[0-9a-f]{40}", commit) or siblings is None:
            raise self._nonsense(name)
        if re.fullmatch("[0-9a-f]{40}", revision.lower()) and commit != revision.lower():
            raise RemoteError(f"{self.host} answers with commit {commit} of {name} where {revision} was asked for")
        if len(siblings) > MAX_LAYERS:
            raise RemoteError(f"{name} has {len(siblings)} files; the limit is {MAX_LAYERS}")
        return Repository(
            name,
            commit,
            bool(info.gated),
            tuple(self._file(name, sibling) for sibling in siblings),
            hf_architecture=_text(info.config, "architectures"),
            gguf_architecture=_text(info.gguf, "architecture"),
        )

    def _file(self, name: str, sibling: Any) -> HubFile:
        path, size, git_hash, lfs = sibling.rfilename, sibling.size, sibling.blob_id, sibling.lfs
        if not isinstance(path, str) or not (size is None or type(size) is int):
            raise self._nonsense(name)
        if size is not None and not 0 <= size < 2**63:
            raise RemoteError(f"{self.host} gives {path[:80]!r} of {name} a size of {size} bytes")
        digest = None
        if lfs is not None:
            try:
                digest = Digest.parse(f"sha256:{lfs.sha256}")
            except InvalidDigest as error:
                raise RemoteError(f"{self.host} names an {error} (of {path[:80]!r} in {name})") from error
            if size is not None and lfs.size != size:
                raise RemoteError(f"{self.host} gives {path[:80]!r} of {name} two sizes")
        is_hash = isinstance(git_hash, str) and re.fullmatch("[0-9a-f]{40}", git_hash)
        return HubFile(path, size, digest, git_hash if is_hash and digest is None else "")


def _text(values: Any, key: str) -> str:
    """A text of the hub's choice among what it adds to a description, of a list the first; "" for anything else."""
    value = values.get(key) if isinstance(values, dict) else None
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, str) else ""


def _raise_temporary(reply: Reply) -> None:
    """As reply.check, and where the hub tells when its limit of requests ends, asking again then."""
    try:
        reply.check(ANSWER)
    except RemoteError as error:
        limit = parse_ratelimit_headers(reply.headers)
        if limit is None or limit.remaining or error.retry_after_s is not None:
            raise
        raise RemoteError(str(error), is_temporary=True, retry_after_s=limit.reset_in_seconds) from error


class _Bridge(httpx2.BaseTransport):
    """Carries out huggingface_hub's requests with ours. Redirects are followed below, where they are looked at."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        with self._transport.send(
            request.method,
            str(request.url),
            headers={"Accept": "application/json"},
            authorization=request.headers.get("authorization", ""),
            body=request.read() or None,
            insecure=_IS_INSECURE.get(),
        ) as reply:
            if reply.status in TEMPORARY or reply.status >= 500:
                _raise_temporary(reply)
            is_error = reply.status >= 400
            body = reply.read(MAX_ERROR_BYTES if is_error else MAX_INFO_BYTES, ANSWER)
            kept = {key: reply.headers[key] for key in HEADERS_OF_ERRORS if key in reply.headers}
            return httpx2.Response(reply.status, headers=kept, content=body)
