"""What says that a request, or an answer, is about a collection of a user's own: its key, and its head."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from starlette.requests import Request

from confide.attest.configuration import CorpusServed
from confide.channel.encryption import COLLECTION_KEY
from confide.errors import EngineFault, RequestRefused
from confide.packages.sealed.key import KEY_BYTES, ModelKey
from confide.receipts.events import collection_event
from confide.receipts.receipt import Event

FILES: Final = "/v1/files"
STORES: Final = "/v1/vector_stores"
HEAD_HEADER: Final = "confide-collection"
"""Of answers: the head of the collection that they are by."""
_KEY: Final = re.compile(rf"[0-9a-f]{{{2 * KEY_BYTES}}}")
_DELETED: Final = "deleted"
_HEAD: Final = re.compile(rf"([0-9a-f]{{64}}) (?:{_DELETED}|([1-9][0-9]{{0,11}}) ([0-9a-f]{{64}}))")


@dataclass(frozen=True)
class Head:
    """Of a collection, by its id. served: as receipts and citations name it; None once it is deleted.

    Nobody signs a collection: in the owner's place stands its id.
    """

    collection: str
    served: CorpusServed | None

    @property
    def event(self) -> Event:
        """For a receipt."""
        return collection_event(self.served, self.collection)

    @property
    def headers(self) -> Mapping[str, str]:
        """Of an answer."""
        said = _DELETED if self.served is None else f"{self.served.head} {self.served.digest}"
        return {HEAD_HEADER: f"{self.collection} {said}"}

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Self | None:
        """That of a neighbour's answer; None where it names none. EngineFault for what is no head."""
        said = headers.get(HEAD_HEADER)
        if said is None:
            return None
        found = _HEAD.fullmatch(said)
        if found is None:
            raise EngineFault("The service behind this one names a head that is none; ask the operator.")
        collection, head, digest = found.groups()
        return cls(collection, None if head is None else CorpusServed(collection, int(head), digest, collection))


def key_of(request: Request) -> ModelKey | None:
    """The collection's key that a request shows; None for none. RequestRefused for what is no key."""
    given = request.headers.getlist(COLLECTION_KEY)
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise RequestRefused(
            f"{COLLECTION_KEY} takes one collection's key, {2 * KEY_BYTES} lower-case hexadecimal digits; give that."
        )
    return ModelKey(bytes.fromhex(given[0]))


def require_key(request: Request) -> ModelKey:
    """The same. RequestRefused for none."""
    key = key_of(request)
    if key is None:
        raise RequestRefused(
            f"Documents of your own need a key of your own, in the header {COLLECTION_KEY}; make one with `confide "
            "collection create`."
        )
    return key
