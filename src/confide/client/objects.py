"""Files of a package, read from wherever they lie: a folder, a web server, or object storage (S3, GCS, Azure).

None of these is believed in anything: whoever reads holds the bytes against digests that were signed. Object storage
may send its clients elsewhere, as S3 does to a bucket's region; a web server may not.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx

from confide.client.hop import TIMEOUT, receiving, sending, server_address, tls_context
from confide.errors import ConnectionLost, InvalidPackage
from confide.extras import named_extras
from confide.net.loopback import is_loopback
from confide.packages.manifest import open_file

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Read = Callable[[str, int], Iterator[bytes]]
"""The bytes of a file by its name in the package, from a place in it on."""
CHUNK: Final = 4 << 20
_OBJECTS: Final = ("s3", "s3a", "gs", "az", "abfs", "abfss")
_RETRY_SECONDS: Final = 30
_PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy")


@contextmanager
def opened(source: str, *, ca: Path | str | None = None, endpoint: str | None = None) -> Iterator[Read]:
    """What reads from a source: an https address, a folder, or an address such as s3://bucket/folder.

    ca: as for a session, of a web server. endpoint: of storage that speaks S3 elsewhere than at Amazon. Reading raises
    InvalidPackage for a file that a folder has not, and ConnectionLost.
    """
    scheme, separator, _ = source.partition("://")
    if not separator:
        yield lambda name, start: _from_folder(Path(source), name, start)
    elif scheme in _OBJECTS:
        store = _store(source, endpoint)
        yield lambda name, start: _from_store(store, source, name, start)
    else:
        address = server_address(source)
        with httpx.Client(verify=tls_context(address, ca), timeout=TIMEOUT, trust_env=False) as http:
            yield lambda name, start: _from_server(http, address, name, start)


def _from_folder(source: Path, name: str, start: int) -> Iterator[bytes]:
    path = source / name if (source / name).exists() else source / Path(name).name
    try:
        with open_file(path) as file:
            file.seek(start)
            while chunk := file.read(CHUNK):
                yield chunk
    except OSError as error:
        raise InvalidPackage(f"{path} cannot be read; give the folder that holds it.") from error


def _from_server(http: httpx.Client, address: str, name: str, start: int) -> Iterator[bytes]:
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with sending(), http.stream("GET", f"{address}/{name}", headers=headers) as answer:
        if answer.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
            raise ConnectionLost(
                f"{address} answers {answer.status_code} for {name}; give the address under which `{name}` lies."
            )
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise ConnectionLost(f"{address} encodes {name}, which was asked for as it is; use another source.")
        # Who has no parts of files gives all of it.
        skipped = start if answer.status_code == httpx.codes.OK else 0
        with receiving():
            for chunk in answer.iter_raw(CHUNK):
                rest = chunk[skipped:]
                skipped -= min(skipped, len(chunk))
                if rest:
                    yield rest


def _store(source: str, endpoint: str | None) -> "ObjectStore":
    """Credentials and region are those that the storage's own tools find in the environment."""
    with named_extras():
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    options: dict[str, Any] = {"retry_config": {"max_retries": 3, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)}}
    if endpoint is not None:
        address = server_address(endpoint)
        options["config"] = {"endpoint": address}
        options["client_options"] = {"allow_http": is_loopback(httpx.URL(address).host)}
    try:
        with _without_proxies():
            return from_url(source, **options)
    except (BaseError, ValueError, TypeError) as error:
        raise ConnectionLost(f"{source!r} is no place in object storage; write s3://bucket/folder.") from error


def _from_store(store: "ObjectStore", source: str, name: str, start: int) -> Iterator[bytes]:
    import obstore
    from obstore.exceptions import BaseError, NotFoundError

    try:
        answer = obstore.get(store, name, options={"range": {"offset": start}} if start else None)
        for chunk in answer.stream(min_chunk_size=CHUNK):
            yield bytes(chunk)
    except (NotFoundError, FileNotFoundError) as error:
        raise ConnectionLost(f"{source} has no {name}; give the address under which `{name}` lies.") from error
    except (BaseError, OSError) as error:
        raise ConnectionLost(
            f"{source} does not give {name} ({type(error).__name__}); check the address, the network, and the "
            "credentials in the environment, such as AWS_ACCESS_KEY_ID."
        ) from error


@contextmanager
def _without_proxies() -> Iterator[None]:
    """The library takes proxies from the environment, as nothing else of Confide does; not while it is made here."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.lower() in _PROXIES}
    try:
        yield
    finally:
        os.environ.update(kept)
