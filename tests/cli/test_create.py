"""`hob create`: what a Modelfile asks of the daemon, and which files go over the wire."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.create import build_request, read_modelfile
from cli.errors import CliError
from cli.source_files import local_files
from modelfiles.parser import parse
from tests.cli.fake_daemon import FakeDaemon, Outcome

Hob = Callable[..., Outcome]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_every_instruction_reaches_its_field(here: Path) -> None:
    text = (
        "FROM tale\nPARAMETER temperature 0.5\nPARAMETER stop a\nPARAMETER stop b\nSYSTEM one\nSYSTEM two\n"
        "TEMPLATE {{ .Prompt }}\nLICENSE MIT\nLICENSE more\nMESSAGE user Hi\nMESSAGE assistant Ho\nREQUIRES 0.1\n"
    )
    request, files = build_request("mine", parse(text), here)
    assert (request.model, request.from_) == ("mine", "tale")
    assert request.parameters == {"temperature": 0.5, "stop": ["a", "b"]}
    assert (request.system, request.template, request.license) == ("two", "{{ .Prompt }}", ["MIT", "more"])
    assert [(message.role, message.content) for message in request.messages or []] == [
        ("user", "Hi"), ("assistant", "Ho")
    ]  # fmt: skip
    assert request.requires == "0.1"
    assert not any(found.paths for found in files.values())


def test_what_a_child_takes_away_is_sent_empty(here: Path) -> None:
    request, _ = build_request("mine", parse('FROM tale\nSYSTEM ""\nTEMPLATE ""\nMESSAGE system ""\n'), here)
    assert (request.system, request.template, request.messages) == ("", "", [])
    request, _ = build_request("mine", parse("FROM tale"), here)
    assert (request.system, request.template, request.messages) == (None, None, None)


def test_a_draft_model_is_sent_beside_the_model(here: Path) -> None:
    (here / "small.gguf").write_bytes(b"GGUF")
    _, files = build_request("mine", parse("FROM tale\nDRAFT small.gguf"), here)
    assert files["draft_files"].paths == {"small.gguf": here / "small.gguf"}


def test_files_are_hashed_and_only_missing_ones_are_sent(daemon: FakeDaemon, hob: Hob, here: Path) -> None:
    (here / "Modelfile").write_text("FROM ./weights.gguf\nADAPTER lora.gguf\n")
    (here / "weights.gguf").write_bytes(b"weights")
    (here / "lora.gguf").write_bytes(b"lora")
    weights, lora = sha256(b"weights"), sha256(b"lora")
    daemon.routes |= {
        ("HEAD", f"/api/blobs/{weights}"): 200,
        ("HEAD", f"/api/blobs/{lora}"): 404,
        ("POST", f"/api/blobs/{lora}"): 201,
        ("POST", "/api/create"): [{"status": "writing manifest"}, {"status": "success"}],
    }
    outcome = hob("create", "mine")
    assert outcome.status == 0, outcome.err
    assert outcome.out == ""
    assert outcome.err.splitlines()[-2:] == ["writing manifest", "success"]
    sent = [path for method, path, _ in daemon.asked if method == "POST"]
    assert sent == [f"/api/blobs/{lora}", "/api/create"]
    assert daemon.bodies("/api/create") == [
        {"model": "mine", "files": {"weights.gguf": weights}, "adapters": {"lora.gguf": lora}}
    ]


class Inbox:
    """What a daemon does with POST /api/blobs/...: takes the only file in its inbox, or wants the bytes."""

    def __init__(self, folder: Path, *, takes: bool = True) -> None:
        self.folder = folder
        self.takes = takes
        self.taken: list[tuple[str, bytes, int]] = []
        """Name, bytes, number of names of the file."""

    def post(self, body: bytes | None) -> object:
        [path] = self.folder.iterdir()
        self.taken.append((path.name, path.read_bytes(), path.stat().st_nlink))
        return 201 if self.takes else (404, {"error": "no such file"})


def test_weights_are_linked_and_what_describes_them_is_sent(
    daemon: FakeDaemon, hob: Hob, here: Path, tmp_path: Path
) -> None:
    inbox = Inbox(tmp_path / "home/models/.hob/inbox")
    inbox.folder.parent.mkdir(parents=True)  # a daemon has been here
    (here / "model.safetensors").write_bytes(b"weights")
    (here / "config.json").write_bytes(b'{"a":1}')
    weights, config = sha256(b"weights"), sha256(b'{"a":1}')
    daemon.routes |= {
        ("POST", f"/api/blobs/{weights}"): inbox.post,
        ("POST", f"/api/blobs/{config}"): 201,
        ("POST", "/api/create"): [{"status": "success"}],
    }
    daemon.routes |= {("HEAD", f"/api/blobs/{digest}"): 404 for digest in (weights, config)}
    assert hob("create", "mine").status == 0
    [(name, data, num_names)] = inbox.taken
    assert (data, num_names) == (b"weights", 2)
    assert re.fullmatch("[0-9a-f]{32}", name)
    assert [headers["Hob-Inbox"] for headers in daemon.headers if "Hob-Inbox" in headers] == [name]
    assert daemon.bodies(f"/api/blobs/{weights}") == [None, None], "the HEAD, and a POST without a body"
    assert daemon.bodies(f"/api/blobs/{config}")[-1] == {"a": 1}
    assert list(inbox.folder.iterdir()) == []
    assert (here / "model.safetensors").read_bytes() == b"weights"


def test_bytes_are_sent_where_the_daemon_does_not_take_the_link(
    daemon: FakeDaemon, hob: Hob, here: Path, tmp_path: Path
) -> None:
    inbox = Inbox(tmp_path / "home/models/.hob/inbox", takes=False)
    inbox.folder.parent.mkdir(parents=True)
    (here / "weights.gguf").write_bytes(b"weights")
    weights = sha256(b"weights")
    daemon.routes |= {
        ("HEAD", f"/api/blobs/{weights}"): 404,
        ("POST", f"/api/blobs/{weights}"): lambda body: inbox.post(body) if body is None else 201,
        ("POST", "/api/create"): [{"status": "success"}],
    }
    assert hob("create", "mine").status == 0
    assert len(inbox.taken) == 1
    assert daemon.bodies(f"/api/blobs/{weights}")[-1] == b"weights"
    assert list(inbox.folder.iterdir()) == []


def test_quantizing_is_asked_for_and_its_progress_shown(daemon: FakeDaemon, hob: Hob, here: Path) -> None:
    (here / "Modelfile").write_text("FROM tale\n")
    status = {"status": "quantizing BF16 model to Q4_K_M", "digest": "sha256:" + 64 * "0", "total": 9}
    daemon.routes["POST", "/api/create"] = [
        {**status, "completed": 3},
        {**status, "completed": 9},
        {"status": "success"},
    ]
    outcome = hob("create", "mine", "--quantize", "q4_K_M")
    assert (outcome.status, outcome.err) == (
        0,
        "quantizing BF16 model to Q4_K_M: 9 B\nquantizing BF16 model to Q4_K_M: 100% of 9 B\nsuccess\n",
    )
    assert daemon.bodies("/api/create") == [{"model": "mine", "from": "tale", "quantize": "q4_K_M"}]


def test_an_error_of_the_daemon_ends_it(daemon: FakeDaemon, hob: Hob, here: Path) -> None:
    (here / "Modelfile").write_text("FROM tale\n")
    daemon.routes["POST", "/api/create"] = [{"status": "parsing"}, {"error": "template: 3: unexpected end"}]
    assert hob("create", "mine") == (1, "", "parsing\nError: template: 3: unexpected end\n")


def test_a_missing_modelfile_counts_only_where_it_was_asked_for(here: Path) -> None:
    modelfile, folder = read_modelfile(None)
    assert (str(modelfile), folder) == ("FROM .\n", Path())
    with pytest.raises(CliError, match="there is no Modelfile at other"):
        read_modelfile(Path("other"))


def test_paths_start_at_the_modelfile(here: Path) -> None:
    folder = here / "deep"
    folder.mkdir()
    (folder / "w.gguf").write_bytes(b"x")
    (folder / "Modelfile").write_text("FROM w.gguf\n")
    modelfile, start = read_modelfile(Path("deep/Modelfile"))
    _, files = build_request("mine", modelfile, start)
    assert files["files"].paths == {"w.gguf": Path("deep/w.gguf")}


def test_a_file_hides_the_model_of_its_name(here: Path) -> None:
    assert local_files("tale", here) is None
    (here / "tale").write_bytes(b"GGUF")
    found = local_files("tale", here)
    assert found is not None
    assert found.paths == {"tale.gguf": here / "tale"}


def test_a_folder_gives_one_kind_of_weights_and_what_describes_them(here: Path) -> None:
    for name in (
        "model-1.safetensors",
        "model-2.safetensors",
        "old.gguf",
        "config.json",
        "tokenizer.json",
        "README.md",
    ):
        (here / name).write_bytes(b"x")
    (here / "folder.json").mkdir()
    for name in ("1_Pooling", "2_Dense"):
        (here / name).mkdir()
        (here / name / "config.json").write_bytes(b"x")
    found = local_files(".", here)
    assert found is not None
    assert found.paths["1_Pooling/config.json"] == here / "1_Pooling" / "config.json"
    assert sorted(found.paths)[1:] == ["config.json", "model-1.safetensors", "model-2.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FROM ./none", "nothing is at .*none"),
        ("FROM none.gguf", "nothing is at .*none.gguf"),
        ("FROM .", "holds neither .safetensors nor .gguf"),
        ("FROM pointer", "a pointer of git-lfs"),
        ("FROM a\nFROM b", "only one FROM can name a model"),
        ("FROM a\nADAPTER none", 'ADAPTER "none" is not there'),
        ("FROM a\nDRAFT b", 'DRAFT "b" is not there'),
        ("FROM " + "x" * 5000, "neither a path nor a name"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_is_sent(here: Path, text: str, said: str) -> None:
    (here / "pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(CliError, match=said):
        build_request("mine", parse(text), here)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("FRIM x", "(line 2, column 1): command must be one of"),
        ("REQUIRES new", "(line 2, column 10): 'new' is no version"),
        ("PARAMETER heat 1", "(line 2, column 11): unknown parameter 'heat'"),
        ("PARAMETER temperature hot", '(line 2, column 11): parameter "temperature" is "hot", which is not a number'),
    ],
)
def test_a_wrong_modelfile_names_its_file_and_line(
    daemon: FakeDaemon, hob: Hob, here: Path, line: str, said: str
) -> None:
    for name, arguments in (("Modelfile", []), ("other", ["-f", "other"])):
        (here / name).write_text(f"FROM tale\n{line}\n")
        outcome = hob("create", "mine", *arguments)
        assert outcome.status == 1
        assert outcome.err.startswith(f"Error: {name}: {said}")
        (here / name).unlink()
    assert daemon.asked == []


@pytest.mark.parametrize("kind", ["pipe", "socket", "/dev/zero", "/dev/random", "/proc/self/mem"])
def test_s06_what_is_no_file_is_refused_at_once(here: Path, kind: str) -> None:
    path = Path(kind) if kind.startswith("/") else here / "weights.gguf"
    if kind == "pipe":
        os.mkfifo(path)
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "socket":
            listener.bind("weights.gguf")
        if not path.exists():
            pytest.skip(f"there is no {kind}")
        with pytest.raises(CliError, match=r"is no regular file|cannot be read: Input/output error"):
            build_request("mine", parse(f"FROM {path}"), here)


def names_of(text: str, here: Path) -> dict[str, str]:
    _, files = build_request("mine", parse(f"FROM tale\n{text}"), here)
    return {name: str(path.relative_to(here)) for name, path in files["adapters"].paths.items()}


def test_what_an_adapter_line_means(here: Path) -> None:
    """A folder, a GGUF file, safetensors with their configuration beside them, and the blobs that `show` prints."""
    for folder in ("peft", "other"):
        (here / folder).mkdir()
        for name in ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"):
            (here / folder / name).write_bytes(b"{}" if name.endswith("json") else b"x")
    (here / "other" / "adapter_model.safetensors").rename(here / "other" / "mine.safetensors")
    (here / "lora.gguf").write_bytes(b"GGUF")
    (here / "sha256-1").write_bytes(b"GGUF")
    (here / "sha256-2").write_bytes(b'{"peft_type": "LORA"}')
    (here / "sha256-3").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    peft = {"adapter_model.safetensors": "peft/adapter_model.safetensors"}
    peft |= {"adapter_config.json": "peft/adapter_config.json"}
    assert names_of("ADAPTER ./peft", here) == peft
    assert names_of("ADAPTER peft/adapter_model.safetensors", here) == peft
    other = {"adapter_model.safetensors": "other/mine.safetensors", "adapter_config.json": "other/adapter_config.json"}
    assert names_of("ADAPTER ./other", here) == other
    assert names_of("ADAPTER sha256-1", here) == {"adapter.gguf": "sha256-1"}
    blobs = {"adapter_model.safetensors": "sha256-3", "adapter_config.json": "sha256-2"}
    assert names_of("ADAPTER sha256-2\nADAPTER sha256-3", here) == blobs
    several = names_of("ADAPTER peft\nADAPTER lora.gguf\nADAPTER sha256-2\nADAPTER sha256-3", here)
    assert several == {f"1/{name}": path for name, path in peft.items()} | {"2/lora.gguf": "lora.gguf"} | {
        f"3/{name}": path for name, path in blobs.items()
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ADAPTER ./empty", "no adapter is in .*empty"),
        ("ADAPTER ./two", r"holds 2 adapters \(a.gguf, b.gguf\); name the file"),
        ("ADAPTER lone.safetensors", "there is no adapter_config.json beside"),
        ("ADAPTER some.json", "followed by no ADAPTER line with the weights"),
        ("ADAPTER ./none.gguf", "nothing is at .*none.gguf"),
    ],
)
def test_an_adapter_line_that_means_nothing(here: Path, line: str, said: str) -> None:
    for folder in ("empty", "two"):
        (here / folder).mkdir()
    for name in ("two/a.gguf", "two/b.gguf", "lone.safetensors"):
        (here / name).write_bytes(b"x")
    (here / "some.json").write_text("{}")
    with pytest.raises(CliError, match=said):
        names_of(line, here)


def test_a_gguf_blob_can_be_a_models_source(here: Path) -> None:
    (here / "sha256-1").write_bytes(b"GGUF")
    _, files = build_request("mine", parse("FROM ./sha256-1"), here)
    assert list(files["files"].paths) == ["sha256-1.gguf"]
