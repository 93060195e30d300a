"""Fetching a shell's hint, from a folder or over HTTP, from whoever has it: its digests are signed with the shell.

A file has its name only once it is whole and verified; those that are there already and right are not fetched again.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx

from confide.client.hop import TIMEOUT, sending, server_address, tls_context
from confide.disk.files import name_file
from confide.errors import ConfideError, ConnectionLost, InvalidPackage, StaleHint
from confide.packages.hint import CHUNK, OnBytes, hint_bytes, verified
from confide.packages.manifest import HINT_FOLDER, Manifest, hint_name, open_file

Chunks = Callable[[str], Iterator[bytes]]
_MODE: Final = 0o644


def fetch_hint(
    folder: Path,
    manifest: Manifest,
    source: str,
    *,
    ca: Path | str | None = None,
    on_bytes: OnBytes | None = None,
) -> None:
    """Fetch the hint of the shell in a folder; `manifest` is the shell's, its signature checked.

    source: an https address or a folder, that of the hint or of a shell with it. Raises StaleHint where what comes is
    not what was signed, InvalidPackage where the table knows of no hint or the source has none, ConnectionLost.
    """
    if not manifest.hint:
        raise InvalidPackage(
            f"{folder} was split with --no-hint; its owner makes a hint with `confide hint make` and hands the shell "
            "out anew."
        )
    (folder / HINT_FOLDER).mkdir(exist_ok=True)
    with _opened(source, ca) as chunks:
        for index, group in enumerate(manifest.groups):
            try:
                verified(folder, index, manifest, on_bytes)
                continue
            except InvalidPackage:  # missing or wrong: the reason to fetch it
                pass
            name = hint_name(index)
            _write(folder / name, chunks(name), hint_bytes(group), manifest.hint[name], source, on_bytes)


def _write(path: Path, chunks: Iterator[bytes], size: int, digest: str, source: str, on_bytes: OnBytes | None) -> None:
    part = path.with_suffix(".part")
    hashed = hashlib.sha256()
    left = size
    try:
        part.unlink(missing_ok=True)  # were it a link, writing would follow it
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE), "wb") as file:
            for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    break
                hashed.update(chunk)
                file.write(chunk)
                if on_bytes:
                    on_bytes(len(chunk))
        if left or hashed.hexdigest() != digest:
            raise StaleHint(
                f"What {source} has as {path.name} is not the hint that was signed with this shell; fetch it from "
                "elsewhere, or get the shell that belongs to it."
            )
        name_file(part, path)
    except OSError as error:
        raise ConfideError(
            f"{path} cannot be written ({error.strerror}); make room and fetch again: what is done is kept."
        ) from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _opened(source: str, ca: Path | str | None) -> Iterator[Chunks]:
    if "://" not in source:
        yield lambda name: _read(Path(source), name)
        return
    address = server_address(source)
    with httpx.Client(verify=tls_context(address, ca), timeout=TIMEOUT, trust_env=False) as http:
        yield lambda name: _get(http, address, name)


def _read(source: Path, name: str) -> Iterator[bytes]:
    path = source / name if (source / name).exists() else source / Path(name).name
    try:
        with open_file(path) as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except OSError as error:
        raise InvalidPackage(f"{path} cannot be read; give the folder that holds the hint.") from error


def _get(http: httpx.Client, address: str, name: str) -> Iterator[bytes]:
    with sending(), http.stream("GET", f"{address}/{name}", headers={"Accept-Encoding": "identity"}) as answer:
        if answer.status_code != httpx.codes.OK:
            raise ConnectionLost(
                f"{address} answers {answer.status_code} for {name}; give the address under which `{name}` lies."
            )
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise ConnectionLost(f"{address} encodes {name}, which was asked for as it is; use another source.")
        yield from answer.iter_raw(CHUNK)
