"""Challenges, sites, and names and passwords from .netrc."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.auth import Challenge, is_same_site, netrc_credentials, parse_challenges
from registry.errors import RemoteDenied


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        ("", []),
        ('Basic realm="a, b"', [Challenge("basic", {"realm": "a, b"})]),
        (
            'Bearer realm="https://a/token",service=b,scope="repository:x:pull,push"',
            [Challenge("bearer", {"realm": "https://a/token", "service": "b", "scope": "repository:x:pull,push"})],
        ),
        (
            'Negotiate, BASIC REALM = "say \\"a\\"" , Bearer realm=x',
            [Challenge("negotiate", {}), Challenge("basic", {"realm": 'say "a"'}), Challenge("bearer", {"realm": "x"})],
        ),
        ('Bearer realm="a",realm="b"', [Challenge("bearer", {"realm": "a"})]),
        ('realm="a"', []),
        ('Bearer realm="a', [Challenge("bearer", {}), Challenge("realm", {}), Challenge("a", {})]),
        ("Bearer realm=", [Challenge("bearer", {}), Challenge("realm", {})]),
        ('Bearer realm=""', [Challenge("bearer", {"realm": ""})]),
    ],
)
def test_challenges(header: str, challenges: list[Challenge]) -> None:
    assert parse_challenges(header) == challenges


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("registry.example.com", "registry.example.com"),
        ("registry-1.docker.io", "auth.docker.io"),
        ("registry.gitlab.com", "gitlab.com"),
        ("example.com", "auth.example.com"),
        ("a.b.example.com", "c.b.example.com"),
        ("localhost", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("registry.example.co.uk", "auth.example.co.uk"),
    ],
)
def test_hosts_of_one_site(one: str, other: str) -> None:
    assert is_same_site(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("registry.example.com", "evil.example"),
        ("registry.example.com", "registry.example.com.evil.net"),
        ("registry.example.com", "evilregistry.example.com.net"),
        ("registry.example.com", "notexample.com"),
        ("example.com", "other.com"),
        ("registry.example.com", "com"),
        ("example.co.uk", "evil.co.uk"),
        ("registry.com.cn", "evil.com.cn"),
        ("127.0.0.1", "127.0.0.2"),
        ("10.0.0.1", "10.0.0.1.example.com"),
        ("a.localhost", "b.localhost"),
        ("registry", "other"),
        ("a.b.example.com", "example.com."),
    ],
)
def test_hosts_of_different_sites(one: str, other: str) -> None:
    assert not is_same_site(one, other)
    assert not is_same_site(other, one)


@pytest.fixture
def netrc_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".netrc"
    path.touch(0o600)
    return path


def test_a_machine_of_netrc(netrc_file: Path) -> None:
    netrc_file.write_text(
        "machine registry.example.com login me password secret\n"
        "machine registry.example.com:5001 login other password secret2\n"
        "default login anybody password anything\n"
    )
    assert netrc_credentials("registry.example.com") == ("me", "secret")
    assert netrc_credentials("registry.example.com:5001") == ("other", "secret2")
    assert netrc_credentials("elsewhere.example.com") is None
    assert netrc_credentials("default") is None


def test_no_netrc(netrc_file: Path) -> None:
    netrc_file.unlink()
    assert netrc_credentials("registry.example.com") is None


@pytest.mark.parametrize(
    ("text", "mode"), [("machine registry.example.com login me password secret", 0o644), ("nonsense", 0o600)]
)
def test_a_netrc_that_cannot_be_used(netrc_file: Path, text: str, mode: int) -> None:
    netrc_file.write_text(text)
    netrc_file.chmod(mode)
    with pytest.raises(RemoteDenied, match=r"the \.netrc file of the daemon's user") as caught:
        netrc_credentials("registry.example.com")
    assert "secret" not in str(caught.value)
    assert str(netrc_file) not in str(caught.value)
