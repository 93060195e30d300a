"""One way in: what belongs to another protection is refused, never left out."""

from pathlib import Path
from typing import Any

import pytest

import confide
from confide.errors import WrongMode


@pytest.mark.parametrize(
    ("target", "options", "foreign"),
    [
        ("https://models.example", {"shell": "client"}, "shell"),
        ("https://models.example", {"checks": "checks.msgpack"}, "checks"),
        ("https://models.example", {"padding": confide.Padding()}, "padding"),
        ("wss://layers.example", {"shell": "client", "policy": "policy.toml"}, "policy"),
        ("wss://layers.example", {"shell": "client", "simulated_root": "root.pem"}, "simulated_root"),
        (Path("client"), {"server": "wss://layers.example", "offline": True, "ra_tls": True}, "offline or ra_tls"),
    ],
)
def test_options_of_the_other_protection_are_refused(target: Any, options: dict[str, Any], foreign: str) -> None:
    with pytest.raises(WrongMode, match=f"has no {foreign};"):
        confide.connect(target, **options)


@pytest.mark.parametrize("target", ["https://models.example", "wss://layers.example"])
def test_an_option_that_there_is_none_is_no_option(target: str) -> None:
    with pytest.raises(TypeError, match="has no option licens"):
        confide.connect(target, licens="key")  # type: ignore[call-arg]


def test_half_of_the_hybrid_mode_is_not_enough() -> None:
    for target in ("ws://127.0.0.1:1", Path("client")):
        with pytest.raises(WrongMode, match="both the client's folder"):
            confide.connect(target)
