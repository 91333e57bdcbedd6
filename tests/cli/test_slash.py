"""The slash commands, each by what it says and what it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from cli.client import Client
from cli.conversation import Conversation
from cli.errors import ServerError
from cli.slash import Bye, run_command
from daemon import api
from tests.cli.fake_daemon import DETAILS, FakeDaemon

Say = Callable[[str], tuple[str, str]]


@pytest.fixture
def talk(daemon: FakeDaemon, shown: dict[str, Any]) -> Iterator[Conversation]:
    daemon.routes["POST", "/api/show"] = shown
    with Client.connect(f"http://{daemon.address}") as client:
        yield Conversation(client, "tale", msgspec.convert(shown, api.ShowResponse))


@pytest.fixture
def say(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command; what it wrote to stdout and stderr."""

    def run(line: str) -> tuple[str, str]:
        run_command(talk, line)
        return capsys.readouterr()

    return run


def chat(*texts: str) -> list[dict[str, Any]]:
    pieces = [
        {"model": "m", "created_at": "t", "done": False, "message": {"role": "assistant", "content": t}} for t in texts
    ]
    return [*pieces, {"model": "m", "created_at": "t", "done": True, "message": {"role": "assistant", "content": ""}}]


@pytest.mark.parametrize(
    ("line", "said", "options"),
    [
        ("temperature 0.5", "Set parameter 'temperature' to '0.5'", {"temperature": 0.5}),
        ("num_ctx 4096", "Set parameter 'num_ctx' to '4096'", {"num_ctx": 4096}),
        ("stop a b", "Set parameter 'stop' to 'a, b'", {"stop": ["a", "b"]}),
        ("heat 1", "Couldn't set parameter: unknown parameter 'heat'", {}),
        ("top_k x", "Couldn't set parameter: parameter \"top_k\" is \"x\", which is not a whole number", {}),
    ],
)  # fmt: skip
def test_set_parameter(talk: Conversation, say: Say, line: str, said: str, options: dict[str, Any]) -> None:
    assert say(f"/set parameter {line}") == (f"{said}\n", "")
    assert talk.options == options


def test_set_parameter_alone_lists_them(say: Say) -> None:
    out, err = say("/set parameter")
    assert out == ""
    assert "/set parameter temperature" in err


def test_set_system_replaces_one_that_nothing_was_said_under(talk: Conversation, say: Say) -> None:
    assert say("/set system Be brief.") == ("Set system message.\n", "")
    say("/set system Be kind.")
    assert [(message.role, message.content) for message in talk.messages] == [("system", "Be kind.")]
    talk.messages.append(api.RequestMessage(role="user", content="Hi"))
    say("/set system Be odd.")
    assert [message.role for message in talk.messages] == ["system", "user", "system"]


@pytest.mark.parametrize(
    ("line", "said", "attribute", "value"),
    [
        (
            "/set format json",
            "constrained output (format) is not available in this version of Hob",
            "format",
            None,
        ),
        ("/set noformat", "Disabled format.", "format", None),
        ("/set think", "Set 'think' mode.", "think", True),
        ("/set think high", "Set 'think' mode to 'high'.", "think", "high"),
        ("/set nothink", "Set 'nothink' mode.", "think", False),
        ("/set verbose", "Set 'verbose' mode.", "verbose", True),
        ("/set quiet", "Set 'quiet' mode.", "verbose", False),
        ("/set wordwrap", "Set 'wordwrap' mode.", "wordwrap", True),
        ("/set nowordwrap", "Set 'nowordwrap' mode.", "wordwrap", False),
    ],
)
def test_set_modes(talk: Conversation, say: Say, line: str, said: str, attribute: str, value: object) -> None:
    assert say(line) == (f"{said}\n", "")
    assert getattr(talk, attribute) == value


def test_history_is_switched_silently(talk: Conversation, say: Say) -> None:
    assert say("/set nohistory") == ("", "")
    assert talk.history is False
    say("/set history")
    assert talk.history is True


def test_show(talk: Conversation, say: Say) -> None:
    assert say("/show system") == ("You tell stories.\n", "")
    assert say("/show template") == ("{{ .Prompt }}\n", "")
    assert say("/show info")[0].startswith("  Model\n    architecture")
    talk.shown.license = ""
    assert say("/show license") == ("No license was specified for this model.\n", "")
    assert "/show parameters" in say("/show nonsense")[1]


def test_show_parameters_has_both_kinds(say: Say) -> None:
    say("/set parameter seed 7")
    assert say("/show parameters")[0] == (
        "Model defined parameters:\n"
        '    stop           "<|im_end|>"\n    temperature    0.7\n\n'
        "User defined parameters:\n    seed    7\n\n"
    )


def test_load(talk: Conversation, say: Say, daemon: FakeDaemon, shown: dict[str, Any]) -> None:
    talk.messages.append(api.RequestMessage(role="user", content="Hi"))
    daemon.routes["POST", "/api/generate"] = {"model": "m", "created_at": "t", "response": "", "done": True}
    daemon.routes["POST", "/api/show"] = lambda body: (
        shown | {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
        if body["model"] == "other"
        else (404, {"error": "not found"})
    )
    assert say("/load none") == ("Loading model 'none'\nCouldn't find model 'none'\n", "")
    assert (talk.model, len(talk.messages)) == ("tale", 1)
    assert say("/load other") == ("Loading model 'other'\n>>> Hi\nHo\n\n", "")
    assert (talk.model, talk.messages) == ("other", [])


def test_save_keeps_what_the_session_set(talk: Conversation, say: Say, daemon: FakeDaemon) -> None:
    daemon.routes["POST", "/api/create"] = [{"status": "success"}]
    daemon.routes["POST", "/api/chat"] = chat("Ho", "!")
    say("/set system Be brief.")
    say("/set parameter seed 7")
    talk.turn("Hi")
    assert say("/save mine")[0].endswith("Created new model 'mine'\n")
    assert daemon.bodies("/api/create") == [
        {
            "model": "mine", "from": "tale", "system": "Be brief.", "parameters": {"seed": 7},
            "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho!"}],
        }
    ]  # fmt: skip
    daemon.routes["POST", "/api/create"] = (400, {"error": "invalid model name"})
    assert say("/save a b")[0] == "error: The model name 'a b' is invalid\n"


def test_clear_keeps_the_system_message(talk: Conversation, say: Say) -> None:
    say("/set system Be brief.")
    talk.messages.append(api.RequestMessage(role="user", content="Hi"))
    assert say("/clear") == ("Cleared session context\n", "")
    assert [message.role for message in talk.messages] == ["system"]


def test_list(say: Say, daemon: FakeDaemon) -> None:
    model = {"name": "tale:latest", "model": "tale:latest", "modified_at": "", "size": 1, "digest": "ab" * 32}
    daemon.routes["GET", "/api/tags"] = {"models": [model | {"details": DETAILS, "capabilities": []}]}
    assert say("/list TALE")[0].splitlines()[1].startswith("tale:latest    abababababab    1 B")


def test_help_and_the_unknown(say: Say) -> None:
    assert say("/frobnicate now") == ("Unknown command '/frobnicate'. Type /? for help\n", "")
    assert say("/?")[1].startswith("Available Commands:\n  /set ")
    assert "/set nothink" in say("/help set")[1]
    assert "Ctrl + d" in say("/? shortcuts")[1]


@pytest.mark.parametrize("line", ["/bye", "/exit"])
def test_bye(say: Say, line: str) -> None:
    with pytest.raises(Bye):
        say(line)


# ---- turns


def test_a_turn_sends_all_that_was_said(
    talk: Conversation, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.routes["POST", "/api/chat"] = chat("Ho", "!")
    talk.turn("Hi")
    talk.turn("Again")
    assert capsys.readouterr().out == "Ho!\n\nHo!\n\n"
    assert [message["content"] for message in daemon.bodies("/api/chat")[1]["messages"]] == ["Hi", "Ho!", "Again"]


def test_a_failed_turn_leaves_no_trace(talk: Conversation, daemon: FakeDaemon) -> None:
    daemon.routes["POST", "/api/chat"] = [chat("Ho")[0], {"error": "the engine died"}]
    with pytest.raises(ServerError, match="the engine died"):
        talk.turn("Hi")
    assert talk.messages == []


def test_a_call_of_a_tool_that_nobody_offered_is_shown(
    talk: Conversation, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    call = {"id": "call_1", "function": {"index": 0, "name": "weather", "arguments": {"city": "Oslo"}}}
    first, last = chat("")
    first["message"]["tool_calls"] = [call]
    daemon.routes["POST", "/api/chat"] = [first, last]
    talk.turn("Weather?")
    assert "a non-existent function 'weather()' with arguments: {'city': 'Oslo'}" in capsys.readouterr().out


def test_user_parameters_are_shown_as_in_a_modelfile(talk: Conversation, say: Say) -> None:
    talk.shown.parameters = ""
    say("/set parameter stop a b")
    say("/set parameter seed 7")
    shown = 'User defined parameters:\n    seed    7\n    stop    "a"\n    stop    "b"\n\n'
    assert say("/show parameters") == (shown, "")
