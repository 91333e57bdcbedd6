"""The prompt's history: limited, private, and never in the way."""

from __future__ import annotations

import stat
from pathlib import Path

from cli.history import LIMIT, LineHistory


def lines(path: Path) -> list[str]:
    return list(LineHistory(path).load_history_strings())


def test_it_is_kept_between_runs_with_the_newest_first(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history"
    LineHistory(path).store_string("one")
    LineHistory(path).store_string("two\nlines é")
    assert lines(path) == ["two\nlines é", "one"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_forgets_the_oldest(tmp_path: Path) -> None:
    history = LineHistory(tmp_path / "history")
    for number in range(LIMIT + 3):
        history.store_string(str(number))
    assert lines(history.path) == [str(number) for number in range(LIMIT + 2, 2, -1)]


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    history = LineHistory(tmp_path / "history")
    history.store_string("kept")
    history.enabled = False
    history.store_string("secret")
    assert lines(history.path) == ["kept"]


def test_a_damaged_file_loses_only_the_damaged_lines(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(b'"good"\nnot json\n17\n\xff\n"also good"\n')
    assert lines(path) == ["also good", "good"]


def test_a_folder_that_cannot_be_written_costs_no_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history = LineHistory(tmp_path / "file" / "history")
    history.store_string("typed")
    assert not history.enabled
