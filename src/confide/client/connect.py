"""One way in to every protection: what is behind an address or a folder says which session it gets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack
from urllib.parse import urlsplit

from confide.client.options import ConnectOptions, EnclaveOptions, HybridOptions
from confide.client.session import Session
from confide.errors import ConnectionLost, WrongMode
from confide.extras import named_extras


def connect(target: str | Path | Sequence[str], **options: Unpack[ConnectOptions]) -> Session:
    """Open a session with a confidential model.

        with confide.connect("https://models.example", policy="policy.toml") as session:
            print(session.trust)
            print(session.chat("Good morning"))

    target: http:// or https:// is a workload in a trusted execution environment, with the options of EnclaveSession; it
    is appraised before anything of a prompt is sent. Several such addresses are replicas of one model. ws:// or wss://
    is a layer server of the hybrid mode, several are those that have a model between them, and need `shell`, the
    client's folder; or give the folder, with `server`; its other options are those of HybridModel.from_shell. What
    cannot be had raises, and so does an option of the other protection; no protection is ever replaced by another one.
    """
    if unknown := [name for name in options if name not in ConnectOptions.__annotations__]:
        raise TypeError(f"connect() has no option {' or '.join(unknown)}")
    targets = [str(target)] if isinstance(target, str | Path) else list(target)
    schemes = set(map(_scheme, targets))
    if schemes and schemes <= {"http", "https"}:
        own = _of(EnclaveOptions, options)
        from confide.client.enclave import EnclaveSession

        return EnclaveSession(targets, **own)
    is_address = bool(schemes) and schemes <= {"ws", "wss"}
    if not is_address and len(targets) != 1:
        raise WrongMode("There are several addresses only where all are http or https, or all ws or wss; give those.")
    shell = options.pop("shell", None) if is_address else targets[0]
    server = targets if is_address else options.pop("server", None)
    if shell is None or server is None:
        raise WrongMode(
            "The hybrid mode needs both the client's folder (shell) and the layer server's address (server); for a "
            "model in a trusted execution environment give its http or https address."
        )
    own = _of(HybridOptions, options)
    with named_extras():
        from confide.client.hybrid import HybridSession

    return HybridSession(shell, server, **own)


def _scheme(target: str) -> str:
    try:
        return urlsplit(target).scheme
    except ValueError:
        raise ConnectionLost(f"{target!r} is no address and no folder; write https://host:port.") from None


def _of(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, if none of them belongs to another protection."""
    known = kind.__annotations__
    foreign = [name for name, value in options.items() if name not in known and value]
    if foreign:
        raise WrongMode(f"This protection has no {' or '.join(foreign)}; leave that out, or check the address.")
    return {name: value for name, value in options.items() if name in known}
