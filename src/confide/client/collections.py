"""A user's own collection, at a service that was verified: its key goes with every request, inside the channel alone.

The service keeps what only that key opens. To delete a collection is to have the service sign that it keeps nothing of
it, and then to part with the key, after which copies of what it kept are of no use to anybody.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from confide.client.answers import typed_errors
from confide.disk.files import FileTooLarge, read_bounded, sync_folder
from confide.errors import ConfideError, ReceiptRefused, UnknownCorpus, UnreadableDocument
from confide.packages.sealed.key import ModelKey
from confide.rag.collection import collection_id
from confide.rag.documents import MAX_DOCUMENT_BYTES
from confide.receipts.events import COLLECTION
from confide.receipts.verify import ReceiptResult

if TYPE_CHECKING:
    from openai import OpenAI

_NAME: Final = "documents"


class OwnCollection:
    """Documents under one key. Methods raise what the session's do, and what the service refuses as its typed error."""

    def __init__(self, key: ModelKey, client: "OpenAI", keep_receipt: Callable[[Path], ReceiptResult]) -> None:
        """client: shows the key with whatever it asks. keep_receipt: of its last answer, in a folder."""
        self.id = collection_id(key)
        self.openai = client
        self._keep_receipt = keep_receipt

    def __repr__(self) -> str:
        return f"OwnCollection({self.id[:16]}...)"

    @property
    def vector_store(self) -> str:
        """Its id in OpenAI's API."""
        return f"vs_{self.id}"

    def add(self, path: Path | str, name: str = "") -> str:
        """Have a document read, and searched from now on; its id. name: the file's without.

        UnreadableDocument, also where the file cannot be read here.
        """
        path = Path(path)
        try:
            content = read_bounded(path, MAX_DOCUMENT_BYTES)
        except FileTooLarge:
            raise UnreadableDocument.because(f"it is larger than {MAX_DOCUMENT_BYTES >> 20} MiB") from None
        except OSError as error:
            raise UnreadableDocument.because(error.strerror or "the system refuses", str(path)) from error
        with typed_errors():
            added = self.openai.files.create(file=(name or path.name, content), purpose="assistants")
            if not self.exists:
                self.openai.vector_stores.create(name=_NAME)
            self.openai.vector_stores.files.create(self.vector_store, file_id=added.id)
        return added.id

    @property
    def exists(self) -> bool:
        """Whether the service has a vector store for this key."""
        try:
            with typed_errors():
                self.openai.vector_stores.retrieve(self.vector_store)
        except UnknownCorpus:
            return False
        return True

    def documents(self) -> list[Any]:
        """All of them, as OpenAI's API shows files."""
        with typed_errors():
            return list(self.openai.files.list().data)

    def search(self, question: str, most: int = 10) -> list[Any]:
        """What fits a question, the best first, as OpenAI's API shows results. UnknownCorpus where there is nothing."""
        with typed_errors():
            return list(self.openai.vector_stores.search(self.vector_store, query=question, max_num_results=most).data)

    def remove(self, document: str) -> None:
        """Have a document left out from now on. Older heads, which the key opens too, may be kept: see `delete`."""
        with typed_errors():
            self.openai.files.delete(document)

    def delete(self, proof: Path) -> ReceiptResult:
        """Have all of it removed; in `proof`, a new folder, is kept what shows that to others.

        UnknownReceipt where the service signs no receipts, ReceiptRefused where its receipt says anything else.
        """
        with typed_errors():
            self.openai.vector_stores.delete(self.vector_store)
        try:
            result = self._keep_receipt(proof)
        except FileExistsError as error:
            raise ConfideError(
                f"{proof} has files already; the collection is deleted, and no proof was kept."
            ) from error
        said = [event for event in result.receipt.events(COLLECTION) if event.get("deleted") is True]
        if [event.get("corpus") for event in said] != [self.id]:
            raise ReceiptRefused(
                "The receipt does not say that this collection was deleted; ask the service's operator."
            )
        return result


def part_with(key: Path) -> None:
    """Remove a key file, durably. What was copied elsewhere is not known here."""
    key.unlink()
    sync_folder(key.parent)
