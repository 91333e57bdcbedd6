"""Every command from its command line to the request and the output, against a double of the daemon."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.cli.fake_daemon import DETAILS, FakeDaemon, Outcome

Hob = Callable[..., Outcome]
DONE = {"model": "tale", "created_at": "t", "response": "", "done": True, "done_reason": "stop"}


def piece(text: str, thinking: str = "") -> dict[str, Any]:
    return {"model": "tale", "created_at": "t", "response": text, "thinking": thinking, "done": False}


def test_list(daemon: FakeDaemon, hob: Hob) -> None:
    model = {"modified_at": "", "size": 6_800_000, "digest": "0123456789abcdef", "details": DETAILS, "capabilities": []}
    daemon.routes["GET", "/api/tags"] = {
        "models": [{"name": name, "model": name, **model} for name in ("tale:latest", "Qwen:7b")]
    }
    assert hob("list").out == (
        "NAME           ID              SIZE      MODIFIED\n"
        "tale:latest    0123456789ab    6.8 MB    Never\n"
        "Qwen:7b        0123456789ab    6.8 MB    Never\n"
    )
    assert hob("ls", "qw").out == (
        "NAME       ID              SIZE      MODIFIED\nQwen:7b    0123456789ab    6.8 MB    Never\n"
    )


def test_list_of_nothing_is_a_header(daemon: FakeDaemon, hob: Hob) -> None:
    daemon.routes["GET", "/api/tags"] = {"models": []}
    assert hob("list").out == "NAME    ID    SIZE    MODIFIED\n"


def test_ps(daemon: FakeDaemon, hob: Hob) -> None:
    daemon.routes["GET", "/api/ps"] = {
        "models": [
            {
                "name": "tale:latest", "model": "tale:latest", "size": 100, "size_vram": 75,
                "digest": "abcdef0123456789", "details": DETAILS,
                "expires_at": "2318-01-01T00:00:00Z", "context_length": 2048,
            }
        ]
    }  # fmt: skip
    assert hob("ps").out == (
        "NAME           ID              SIZE     PROCESSOR          CONTEXT    UNTIL\n"
        "tale:latest    abcdef012345    100 B    25%/75% CPU/GPU    2048       Forever\n"
    )


def test_show_in_sections(daemon: FakeDaemon, hob: Hob, shown: dict[str, Any]) -> None:
    daemon.routes["POST", "/api/show"] = shown
    assert hob("show", "tale").out == (
        "  Model\n"
        "    architecture        llama\n"
        "    parameters          3.4M\n"
        "    context length      2048\n"
        "    embedding length    256\n"
        "    quantization        F16\n"
        "\n"
        "  Capabilities\n"
        "    completion\n"
        "    tools\n"
        "    thinking\n"
        "\n"
        "  Parameters\n"
        '    stop           "<|im_end|>"\n'
        "    temperature    0.7\n"
        "\n"
        "  System\n"
        "    You tell stories.\n"
        "\n"
        "  License\n"
        "    Apache License\n"
        "    Version 2.0\n"
        "    ...\n"
        "\n"
    )


def test_show_verbose_adds_metadata_and_tensors(daemon: FakeDaemon, hob: Hob, shown: dict[str, Any]) -> None:
    shown["model_info"] |= {"a.eps": 1e-06, "tokens": ["<s>", "</s>", "the", "quick", "brown"]}
    shown["tensors"] = [{"name": "output.weight", "type": "F16", "shape": [256, 1024]}]
    daemon.routes["POST", "/api/show"] = shown
    out = hob("show", "-v", "tale").out
    assert "  Metadata\n    a.eps                     1e-06\n" in out
    assert "    tokens                    [<s>, </s>, ...+3 more]\n" in out
    assert "  Tensors\n    output.weight    F16    [256, 1024]\n\n" in out
    assert daemon.bodies("/api/show")[-1] == {"model": "tale", "verbose": True}


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--template", "{{ .Prompt }}"), ("--system", "You tell stories."), ("--modelfile", "FROM tale\n\n"),
        ("--license", "Apache License\nVersion 2.0\n\nMore of it\n"),
    ],
)  # fmt: skip
def test_show_one_part_is_raw(daemon: FakeDaemon, hob: Hob, shown: dict[str, Any], flag: str, text: str) -> None:
    daemon.routes["POST", "/api/show"] = shown
    assert hob("show", "tale", flag).out == text


def test_show_two_parts_is_a_usage_error(hob: Hob) -> None:
    outcome = hob("show", "tale", "--system", "--template")
    assert outcome.status == 2
    assert outcome.err.startswith("Error: only one of '--license', '--modelfile'")


def test_cp_rm_stop(daemon: FakeDaemon, hob: Hob) -> None:
    daemon.routes |= {
        ("POST", "/api/copy"): 200,
        ("POST", "/api/generate"): DONE,
        ("DELETE", "/api/delete"): 200,
    }
    assert hob("cp", "tale", "mine").out == "copied 'tale' to 'mine'\n"
    assert hob("rm", "mine", "other").out == "deleted 'mine'\ndeleted 'other'\n"
    assert hob("stop", "tale") == Outcome(0, "", "")
    assert daemon.bodies("/api/copy") == [{"source": "tale", "destination": "mine"}]
    assert daemon.bodies("/api/generate")[-1] == {"model": "tale", "keep_alive": 0}


def test_rm_ends_at_the_first_error(daemon: FakeDaemon, hob: Hob) -> None:
    def delete(body: dict[str, str]) -> object:
        return (404, {"error": f"model '{body['model']}' not found"}) if body["model"] == "b" else 200

    daemon.routes |= {
        ("POST", "/api/generate"): (404, {"error": "model not found"}),
        ("DELETE", "/api/delete"): delete,
    }
    outcome = hob("rm", "a", "b", "c")
    assert (outcome.status, outcome.out) == (1, "deleted 'a'\n")
    assert outcome.err == "Error: model 'b' not found; `hob list` shows the models that are here\n"


def test_stop_of_an_unknown_model(daemon: FakeDaemon, hob: Hob) -> None:
    daemon.routes["POST", "/api/generate"] = (404, {"error": "model 'x' not found"})
    assert hob("stop", "x") == Outcome(1, "", 'Error: couldn\'t find model "x" to stop\n')


def test_rm_of_a_prefix_needs_yes_where_nobody_can_be_asked(daemon: FakeDaemon, hob: Hob) -> None:
    def listed(name: str) -> dict[str, Any]:
        model = {"name": name, "model": name, "modified_at": "2026-01-01T00:00:00Z", "size": 1, "digest": "a" * 64}
        return {**model, "details": DETAILS, "capabilities": []}

    names = ("Qwen3:8b", "tale:latest", "qwen2.5:7b")
    daemon.routes |= {
        ("GET", "/api/tags"): {"models": [listed(name) for name in names]},
        ("POST", "/api/generate"): DONE,
        ("DELETE", "/api/delete"): 200,
    }
    asked = hob("rm", "qwen*")
    assert asked.status == 1
    assert asked.err.startswith("Error: this would remove 2 models; --yes does it without asking:\n")
    assert asked.err.splitlines()[1:] == ["    Qwen3:8b", "    qwen2.5:7b"]
    assert not daemon.bodies("/api/delete")
    assert (
        hob("rm", "--yes", "qwen*", "mine", "qwen3*").out
        == "deleted 'Qwen3:8b'\ndeleted 'qwen2.5:7b'\ndeleted 'mine'\n"
    )
    assert hob("rm", "-y", "gemma*").err.startswith('Error: no model\'s name begins with "gemma"')


def test_pull_without_a_terminal_prints_lines(daemon: FakeDaemon, hob: Hob) -> None:
    aa = {"status": "pulling aa", "digest": "sha256:aa", "total": 1000}
    bb = {"status": "pulling bb", "digest": "sha256:bb", "total": 2_000_000}
    daemon.routes["POST", "/api/pull"] = [
        {"status": "pulling manifest"},
        aa,
        {**bb, "completed": 700_000},
        *({**aa, "completed": done} for done in range(50, 1001, 50)),
        {**bb, "completed": 2_000_000},
        {"status": "success"},
    ]
    outcome = hob("pull", "tale")
    assert (outcome.status, outcome.out) == (0, "")
    assert outcome.err.splitlines() == [
        "pulling manifest", "pulling aa: 1 KB", "pulling bb: 2 MB, resumed at 35%", "pulling aa: 20% of 1 KB",
        "pulling aa: 40% of 1 KB", "pulling aa: 60% of 1 KB", "pulling aa: 80% of 1 KB", "pulling aa: 100% of 1 KB",
        "pulling bb: 100% of 2 MB", "success",
    ]  # fmt: skip


@pytest.mark.parametrize("model", ["qwen", "qwen:7b", "qwen:"])
def test_pull_lists_tags_as_names_to_pull(daemon: FakeDaemon, hob: Hob, model: str) -> None:
    daemon.routes["POST", "/api/remote-tags"] = {"tags": [{"tag": "7b", "size": 4_700_000_000}, {"tag": "14b"}]}
    assert hob("pull", "--list-tags", model).out == "NAME        SIZE\nqwen:7b     4.7 GB\nqwen:14b    -\n"
    assert not daemon.bodies("/api/pull")


def test_tags_of_a_host_with_a_port(daemon: FakeDaemon, hob: Hob) -> None:
    daemon.routes["POST", "/api/remote-tags"] = {"tags": [{"tag": "7b"}]}
    assert "localhost:5000/me/qwen:7b" in hob("pull", "--list-tags", "localhost:5000/me/qwen").out


def test_push(daemon: FakeDaemon, hob: Hob) -> None:
    daemon.routes["POST", "/api/push"] = [{"status": "retrieving manifest"}, {"status": "success"}]
    assert hob("push", "--insecure", "localhost:5000/me/tale").err == "retrieving manifest\nsuccess\n"
    assert daemon.bodies("/api/push") == [{"model": "localhost:5000/me/tale", "insecure": True}]


def test_search(daemon: FakeDaemon, hob: Hob) -> None:
    tags = [{"tag": "7b", "size": 4_700_000_000}, {"tag": "14b", "size": 9_000_000_000}]
    model = {"name": "qwen2.5", "description": "Alibaba's models.", "tags": tags}
    daemon.routes["POST", "/api/search"] = {"models": [model]}
    assert hob("search", "code", "qwen").out.splitlines() == [
        "NAME       VARIANTS                   DESCRIPTION",
        "qwen2.5    7b (4.7 GB), 14b (9 GB)    Alibaba's models.",
    ]
    assert daemon.bodies("/api/search") == [{"query": "code qwen"}]
    daemon.routes["POST", "/api/search"] = {"models": []}
    assert hob("search", "nothing").err.startswith('Error: the catalog has nothing for "nothing"; ')


def test_run_prints_the_answer_and_two_newlines(daemon: FakeDaemon, hob: Hob, shown: dict[str, Any]) -> None:
    daemon.routes["POST", "/api/show"] = shown
    daemon.routes["POST", "/api/generate"] = [piece("Once upon"), piece(" a time."), DONE]
    outcome = hob("run", "tale", "Tell", "me", "a story.")
    assert outcome == Outcome(0, "Once upon a time.\n\n", "")
    assert daemon.bodies("/api/generate") == [{"model": "tale", "prompt": "Tell me a story."}]


def test_run_puts_stdin_before_the_argument(daemon: FakeDaemon, hob: Hob, shown: dict[str, Any]) -> None:
    daemon.routes["POST", "/api/show"] = shown
    daemon.routes["POST", "/api/generate"] = [DONE]
    hob("run", "tale", "Sum", "up.", stdin="A long text.\n")
    assert daemon.bodies("/api/generate")[0]["prompt"] == "A long text.\n Sum up."


def test_run_with_every_flag(daemon: FakeDaemon, hob: Hob, shown: dict[str, Any]) -> None:
    daemon.routes["POST", "/api/show"] = shown
    done = DONE | {"total_duration": 2_000_000_000, "eval_count": 4, "eval_duration": 1_000_000_000}
    daemon.routes["POST", "/api/generate"] = [piece("", "Hm."), piece("{}"), done]
    outcome = hob(
        "run", "tale", "--verbose", "--think", "--hidethinking", "--keepalive", "5m",
        "--format", '{"type": "object"}', "Hi",
    )  # fmt: skip
    assert outcome.out == "{}\n\n"
    assert outcome.err == (
        "total duration:       2s\neval count:           4 token(s)\n"
        "eval duration:        1s\neval rate:            4.00 tokens/s\n"
    )
    assert daemon.bodies("/api/generate")[0] == {
        "model": "tale", "prompt": "Hi", "think": True, "keep_alive": "5m", "format": {"type": "object"}
    }  # fmt: skip


def test_run_frames_the_thoughts(daemon: FakeDaemon, hob: Hob, shown: dict[str, Any]) -> None:
    daemon.routes["POST", "/api/show"] = shown
    daemon.routes["POST", "/api/generate"] = [piece("", "Let me see."), piece("Four."), DONE]
    outcome = hob("run", "tale", "--think=high", "2+2")
    assert outcome.out == "Thinking...\nLet me see.\n...done thinking.\n\nFour.\n\n"
    assert daemon.bodies("/api/generate")[0]["think"] == "high"


def test_run_pulls_a_model_that_is_not_there(daemon: FakeDaemon, hob: Hob, shown: dict[str, Any]) -> None:
    def show(_: object) -> object:
        pulled = any(path == "/api/pull" for _, path, _ in daemon.asked)
        return shown if pulled else (404, {"error": "model 'tale' not found"})

    daemon.routes |= {
        ("POST", "/api/show"): show,
        ("POST", "/api/pull"): [{"status": "pulling manifest"}, {"status": "success"}],
        ("POST", "/api/generate"): [piece("Hi."), DONE],
    }
    assert hob("run", "tale", "Hi") == Outcome(0, "Hi.\n\n", "pulling manifest\nsuccess\n")


def test_run_says_when_the_stream_breaks_off(daemon: FakeDaemon, hob: Hob, shown: dict[str, Any]) -> None:
    daemon.routes["POST", "/api/show"] = shown
    daemon.routes["POST", "/api/generate"] = [piece("Once"), {"error": "the engine died"}]
    outcome = hob("run", "tale", "Hi")
    assert outcome == Outcome(1, "Once\n", "Error: the engine died\n")
    daemon.routes["POST", "/api/generate"] = [piece("Once")]
    outcome = hob("run", "tale", "Hi")
    assert outcome.status == 1
    assert "before it was complete" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keepalive", "300", "Hi"], '--keepalive is "300", which is no duration'),
        (["--think=hard", "Hi"], '--think is "hard"; it must be true, false, low'),
        (["--format", "yaml", "Hi"], '--format must be "json" or a JSON schema'),
        (["--format", "[1]", "Hi"], "an object in braces"),
    ],
)
def test_run_refuses_what_it_cannot_read(hob: Hob, arguments: list[str], said: str) -> None:
    outcome = hob("run", "tale", *arguments)
    assert outcome.status == 2
    assert outcome.out == ""
    assert said in outcome.err


def test_run_of_an_embedding_model(daemon: FakeDaemon, hob: Hob, shown: dict[str, Any]) -> None:
    daemon.routes["POST", "/api/show"] = shown | {"capabilities": ["embedding"]}
    daemon.routes["POST", "/api/embed"] = {"model": "e", "embeddings": [[0.5, -0.25]]}
    assert json.loads(hob("run", "e", "text", "--dimensions", "2", "--truncate=false").out) == [0.5, -0.25]
    assert daemon.bodies("/api/embed") == [{"model": "e", "input": "text", "truncate": False, "dimensions": 2}]
    assert "embedding models require input text" in hob("run", "e").err


def test_version(daemon: FakeDaemon, hob: Hob, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.routes["GET", "/api/version"] = {"version": "0.32.15", "hob_version": "0.0.9"}
    assert hob("--version").out.splitlines()[0] == "hob version is 0.0.9"
    monkeypatch.setenv("HOB_HOST", "127.0.0.1:1")
    outcome = hob("--version")
    assert outcome.status == 0
    assert outcome.out.startswith("Warning: could not connect to a running hob daemon\nWarning: client version is ")


def test_another_server_on_the_port(daemon: FakeDaemon, hob: Hob) -> None:
    daemon.routes["GET", "/api/version"] = {"version": "0.9.1"}
    outcome = hob("list")
    assert outcome.status == 1
    assert "another server (it speaks Ollama's API, version 0.9.1) answers" in outcome.err
    assert "HOB_HOST=127.0.0.1:" in outcome.err


def test_a_daemon_elsewhere_is_not_started_here(hob: Hob, monkeypatch: pytest.MonkeyPatch) -> None:
    # https means that a proxy stands there, and hob starts no proxies.
    monkeypatch.setenv("HOB_HOST", "https://127.0.0.1:1")
    outcome = hob("list")
    assert outcome.status == 1
    assert "starts a daemon on this machine only" in outcome.err


def test_wrong_settings_are_a_sentence(hob: Hob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOB_HOST", "127.0.0.1:notaport")
    outcome = hob("list")
    assert outcome.status == 1
    assert outcome.err.startswith("Error: HOB_HOST is ")


@pytest.mark.parametrize("arguments", [["lst"], ["cp", "a"], ["list", "--unknown"], ["serve", "--port", "x"]])
def test_usage_errors(hob: Hob, arguments: list[str]) -> None:
    outcome = hob(*arguments)
    assert outcome.status == 2
    assert "Error: " in outcome.err
    assert outcome.out == ""


def test_shutdown_of_none(hob: Hob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOB_HOST", "127.0.0.1:1")
    assert hob("shutdown") == Outcome(1, "", "Error: no daemon runs at http://127.0.0.1:1\n")


@pytest.mark.parametrize(
    ("option", "said"),
    [("--bogus", "No such option: --bogus\n"), ("--formt", "No such option: --formt (Possible options: --format)\n")],
)
def test_only_an_option_that_is_close_is_suggested(hob: Hob, option: str, said: str) -> None:
    outcome = hob("run", "tale", option)
    assert outcome.status == 2
    assert outcome.err.endswith(said)


def test_fsck(daemon: FakeDaemon, hob: Hob) -> None:
    reading = {"status": "reading the store", "digest": "store", "total": 100, "completed": 100}
    daemon.routes["POST", "/api/fsck"] = [reading, {"status": "success"}]
    assert hob("fsck") == Outcome(0, "the store is sound\n", "reading the store: 100 B\n")
    damage = {"status": "damaged", "subject": "sha256-aa", "reason": "it holds other bytes", "models": ["a:1", "b:2"]}
    daemon.routes["POST", "/api/fsck"] = [reading, {**damage, "quarantined": True}, {"status": "success"}]
    outcome = hob("fsck", "--quick")
    assert outcome.status == 1
    assert outcome.out == (
        "sha256-aa: it holds other bytes; it was moved to .hob/quarantine in the models folder; needed by a:1, b:2\n"
    )
    assert outcome.err.endswith("Error: 1 thing is wrong in the store; see above\n")
    assert daemon.bodies("/api/fsck") == [{"rehash": True}, {"rehash": False}]


def test_import(daemon: FakeDaemon, hob: Hob) -> None:
    models = [
        {"name": "qwen:7b", "size": 4_700_000_000, "stored": False},
        {"name": "tale:latest", "size": 13_000_000, "stored": True},
    ]
    daemon.routes |= {
        ("POST", "/api/importable"): {"models": models},
        ("POST", "/api/import"): [{"status": "success"}],
    }
    assert hob("import", "ollama").out.splitlines() == [
        "NAME           SIZE      IN THE STORE", "qwen:7b        4.7 GB    no", "tale:latest    13 MB     yes",
    ]  # fmt: skip
    assert hob("import", "ollama", "--all").out == "imported 'qwen:7b'\n"
    assert hob("import", "huggingface", "hf.co/a/b", "hf.co/c/d").out == "imported 'hf.co/a/b'\nimported 'hf.co/c/d'\n"
    assert daemon.bodies("/api/import")[0] == {"source": "ollama", "model": "qwen:7b"}
    assert hob("import", "elsewhere").status == 2
    assert hob("import", "ollama", "a", "--all").status == 2
