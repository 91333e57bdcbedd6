"""The slash commands, each by what it says and what it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from cli.client import Client
from cli.conversation import Conversation
from cli.errors import Incomplete, ServerError
from cli.slash import Bye, is_command, run_command, word_choices
from daemon import api
from modelfiles.parameters import PARAMETERS
from tests.cli.fake_daemon import DETAILS, FakeDaemon

Say = Callable[[str], tuple[str, str]]
INVALID_FORMAT = "Invalid or missing format. For 'json' mode use '/set format json'; a JSON schema is a format, too."


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
        ('stop "a b" c', "Set parameter 'stop' to 'a b, c'", {"stop": ["a b", "c"]}),
        ("stop don't", "Set parameter 'stop' to 'don't'", {"stop": ["don't"]}),
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
    assert "  temperature       number " in err
    assert [line.split()[0] for line in sorted(err.splitlines()[1:])] == sorted(PARAMETERS)


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
        ("/set format json", "Set format to 'json' mode.", "format", "json"),
        ('/set format {"type": "object"}', "Set format to a JSON schema.", "format", {"type": "object"}),
        ("/set format yaml", INVALID_FORMAT, "format", None),
        ("/set format", INVALID_FORMAT, "format", None),
        ("/set noformat", "Disabled format.", "format", None),
        ("/set think", "Set 'think' mode.", "think", True),
        ("/set think high", "Set 'think' mode to 'high'.", "think", "high"),
        ("/set nothink", "Set 'nothink' mode.", "think", False),
    ],
)
def test_set_modes(talk: Conversation, say: Say, line: str, said: str, attribute: str, value: object) -> None:
    assert say(line) == (f"{said}\n", "")
    assert getattr(talk, attribute) == value


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        ("verbose", "verbose", True), ("quiet", "verbose", False), ("wordwrap", "wordwrap", True),
        ("nowordwrap", "wordwrap", False), ("markdown", "markdown", True), ("nomarkdown", "markdown", False),
    ],
)  # fmt: skip
def test_set_how_answers_are_shown(talk: Conversation, say: Say, name: str, attribute: str, value: bool) -> None:
    setattr(talk.display, attribute, not value)
    assert say(f"/set {name}") == (f"Set '{name}' mode.\n", "")
    assert getattr(talk.display, attribute) is value


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
    say("/set system Be brief.")
    assert say("/load other") == ("Loading model 'other'\n>>> Hi\nHo\n\n", "")
    assert (talk.model, talk.messages, talk.system) == ("other", [], "")


def test_load_of_a_model_that_cannot_think(
    talk: Conversation, say: Say, daemon: FakeDaemon, shown: dict[str, Any]
) -> None:
    daemon.routes["POST", "/api/generate"] = {"model": "m", "created_at": "t", "response": "", "done": True}
    daemon.routes["POST", "/api/show"] = shown | {"capabilities": ["completion"]}
    talk.think = "high"
    say("/load other")
    assert talk.think is None


def test_saving_under_the_models_own_name_says_nothing_twice(
    talk: Conversation, say: Say, daemon: FakeDaemon, shown: dict[str, Any]
) -> None:
    daemon.routes["POST", "/api/create"] = [{"status": "success"}]
    daemon.routes["POST", "/api/chat"] = chat("Ho")
    talk.turn("Hi")
    stored = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    daemon.routes["POST", "/api/show"] = shown | {"messages": stored}
    say("/save Tale:latest")
    talk.turn("Again")
    assert daemon.bodies("/api/chat")[1]["messages"] == [{"role": "user", "content": "Again"}]
    say("/save tale")
    assert [message["content"] for message in daemon.bodies("/api/create")[1]["messages"]] == [
        "Hi",
        "Ho",
        "Again",
        "Ho",
    ]


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
    assert say("/?")[1].startswith("Commands:\n  /set ")
    assert say("/help\tset") == say("/? /set")
    assert "/set nothink" in say("/help set")[1]
    assert "Ctrl-D" in say("/? shortcuts")[1]
    assert "  num_ctx " in say("/? parameters")[1]
    for topic in ("", "set", "show", "parameters", "shortcuts"):
        assert all(len(line) < 80 for line in say(f"/? {topic}")[1].splitlines())


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("/?", True), ("/help set", True), ("/frobnicate", True), ("/set\tverbose", True), ("/", True),
        ("/home/me/file is a path", False), ("/* a comment */", False), ("//", False), ("a /set", False), ("", False),
    ],
)  # fmt: skip
def test_what_is_a_command(line: str, command: bool) -> None:
    assert is_command(line) is command


@pytest.mark.parametrize(
    ("before", "some"),
    [
        ([], "/set"), (["/set"], "parameter"), (["/set", "parameter"], "num_ctx"), (["/set", "think"], "high"),
        (["/set", "format"], "json"), (["/show"], "info"), (["/?"], "shortcuts"), (["/load"], "tale"),
    ],
)  # fmt: skip
def test_what_may_come_next(before: list[str], some: str) -> None:
    assert some in word_choices(before, lambda: ["tale"])
    assert not list(word_choices([*before, "x", "y"], lambda: ["tale"]))


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


@pytest.mark.parametrize("pieces", [[], chat("Ho")[:1]])
def test_a_turn_that_ends_early_leaves_no_trace(talk: Conversation, daemon: FakeDaemon, pieces: list[Any]) -> None:
    daemon.routes["POST", "/api/chat"] = pieces
    with pytest.raises(Incomplete, match="before it was complete"):
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
