"""The heads of corpora that this person has met, so that an older one is not taken for the newest.

Whoever runs a machine can start a service with any head that its owner ever signed; evidence says which, and the only
clock is what was seen before. They stand in the Confide folder as `corpora.json`, simulated ones apart.
"""

from pathlib import Path
from typing import Annotated, Final

import msgspec

from confide.attest.configuration import CorpusServed
from confide.disk.files import lock_file, read_bounded, replace_file
from confide.disk.home import make_home
from confide.errors import CorpusRefused

FILE_NAME: Final = "corpora.json"
_LOCK_NAME: Final = "corpora.lock"
_LOCK_SECONDS: Final = 10.0
_MAX_FILE: Final = 1 << 20


class _Met(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The newest head of each corpus that was met, by owner and corpus. simulated: by evidence that proves nothing."""

    attested: dict[Annotated[str, msgspec.Meta(max_length=129)], CorpusServed] = {}
    simulated: dict[Annotated[str, msgspec.Meta(max_length=129)], CorpusServed] = {}


def require_current(served: CorpusServed, *, simulated: bool) -> None:
    """Remember a head of verified evidence. CorpusRefused where a newer one, or another of its number, was met before.

    CorpusRefused also where nobody can tell: the file is damaged, or cannot be read or written.
    """
    folder = make_home()
    path = folder / FILE_NAME
    try:
        with (folder / _LOCK_NAME).open("w") as lock:
            if not lock_file(lock.fileno(), _LOCK_SECONDS):
                raise CorpusRefused(f"Another program has held {path} for long; end that one, and try again.")
            met = _read(path)
            known = met.simulated if simulated else met.attested
            name = f"{served.owner}/{served.corpus}"
            before = known.get(name)
            if before == served:
                return
            if before is not None and before.head >= served.head:
                raise _older(served, before)
            kind = "simulated" if simulated else "attested"
            met = msgspec.structs.replace(met, **{kind: {**known, name: served}})
            replace_file(path, msgspec.json.format(msgspec.json.encode(met)), mode=0o600)
    except OSError as error:
        raise CorpusRefused(
            f"The heads of corpora that you met cannot be kept in {path} ({error.strerror}), so an older one would not "
            "be noticed; make your Confide folder writable."
        ) from error


def _read(path: Path) -> _Met:
    try:
        return msgspec.json.decode(read_bounded(path, _MAX_FILE), type=_Met)
    except FileNotFoundError:
        return _Met()
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorpusRefused(
            f"{path} is not what was kept of corpora that you met; look at it, and remove it to meet them anew."
        ) from error


def _older(served: CorpusServed, before: CorpusServed) -> CorpusRefused:
    corpus = f"corpus {served.corpus[:16]}..."
    if before.head > served.head:
        return CorpusRefused(
            f"The service has head {served.head} of the {corpus}, and you have met head {before.head}: it was rolled "
            "back. Ask its operator for the newest, or its owner which one that is."
        )
    return CorpusRefused(
        f"The service has a head {served.head} of the {corpus} that is not the one you met before. Its owner signed "
        "two; ask which of them holds."
    )
