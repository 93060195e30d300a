"""One way in to every protection: what is behind an address or a folder says which session it gets."""

from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from confide.attest.policy import AnyPolicy
from confide.client.session import Session
from confide.errors import WrongMode
from confide.extras import named_extras

_OF_HYBRID: Final = ("shell", "server", "licence")
_OF_ENCLAVE: Final = ("policy", "simulated_root", "attestation_keys", "ra_tls", "offline", "shell", "server")


def connect(
    target: str | Path,
    *,
    policy: AnyPolicy | Path | str | None = None,
    simulated_root: Path | str | None = None,
    **options: Any,
) -> Session:
    """Open a session with a confidential model.

        with confide.connect("https://models.example", policy="policy.toml") as session:
            print(session.trust)
            print(session.chat("Good morning"))

    policy: what evidence must show, itself or a TOML file. simulated_root: the root of simulated hardware, for trying
    things out; it proves nothing.

    target: http:// or https:// is a workload in a trusted execution environment, see EnclaveSession for its options; it
    is appraised before anything of a prompt is sent. ws:// or wss:// is a layer server of the hybrid mode and needs
    `shell`, the client's folder; or give the folder, with the address as `server`; see HybridSession. What cannot be
    had raises; no protection is ever replaced by another one.
    """
    evidence: dict[str, Any] = {"policy": policy, "simulated_root": simulated_root}
    match urlsplit(str(target)).scheme:
        case "http" | "https":
            from confide.client.enclave import EnclaveSession

            return EnclaveSession(str(target), **evidence, **_without(options, *_OF_HYBRID))
        case "ws" | "wss":
            return _hybrid(options.pop("shell", None), str(target), options | evidence)
        case _:
            return _hybrid(target, options.pop("server", None), options | evidence)


def _hybrid(shell: str | Path | None, server: str | None, options: dict[str, Any]) -> Session:
    if shell is None or server is None:
        raise WrongMode(
            "The hybrid mode needs both the client's folder (shell) and the layer server's address (server); for a "
            "model in a trusted execution environment give its http or https address."
        )
    own = _without(options, *_OF_ENCLAVE)
    with named_extras():
        from confide.client.hybrid import HybridSession

    return HybridSession(shell, server, **own)


def _without(options: dict[str, Any], *foreign: str) -> dict[str, Any]:
    """The options, if none of them belongs to another protection."""
    given = [name for name in foreign if options.get(name)]
    if given:
        raise WrongMode(f"This protection has no {' or '.join(given)}; leave that out, or check the address.")
    return {name: value for name, value in options.items() if name not in foreign}
