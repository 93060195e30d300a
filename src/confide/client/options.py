"""What sessions can be told, by protection; `connect` takes either, and refuses what belongs to the other."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

from confide.attest.policy import AnyPolicy
from confide.hybrid.client.padding import Padding


class EnclaveOptions(TypedDict, total=False):
    """Of EnclaveSession."""

    policy: AnyPolicy | Path | str | None
    simulated_root: Path | str | None
    attestation_keys: Iterable[str]
    ra_tls: bool
    offline: bool
    replicas: int
    licence: str
    graph: str
    coordinator: str
    promise: AnyPolicy | Path | str | None
    ca: Path | str | None
    insecure_no_tls: bool


class HybridOptions(TypedDict, total=False):
    """Of HybridSession and HybridModel.from_shell, but for the server."""

    owner: str | bytes | None
    checks: Path | str | None
    licence: str
    ca: Path | str | None
    patience: float
    insecure_no_tls: bool
    proxy: str | None
    padding: Padding | None
    device: str
    progress: bool


class ConnectOptions(EnclaveOptions, HybridOptions, total=False):
    """Of `connect`. shell: the client's folder, where the target is the layer server's address; server: the address or
    addresses or, as a Path, the placement, where the target is the folder.
    """

    shell: Path | str
    server: str | Path | Sequence[str]
