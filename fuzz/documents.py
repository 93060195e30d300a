"""Documents that become a corpus, the chunks in it, its manifest, and what is asked of it."""

import io
from collections.abc import Callable
from functools import cache

import docx
import msgspec
import numpy as np

from confide.enclave.api.own import HEAD_HEADER, Head
from confide.enclave.api.sources import parse_found, parse_store
from confide.enclave.api.upload import uploaded
from confide.packages.sealed.corpus import (
    Chunk,
    Embeddings,
    SealedCorpus,
    encode_chunks,
    parse_chunks,
    parse_corpus_manifest,
    parse_vectors,
    seal_corpus,
)
from confide.packages.sealed.key import ModelKey
from confide.rag.chunks import CHARACTERS, cut
from confide.rag.collection import (
    Collection,
    Document,
    collection_id,
    open_collection,
    parse_collection,
    seal_collection,
)
from confide.rag.documents import MAX_CHARACTERS, read_document
from confide.rag.index import Index
from confide.rag.reader import pages_of

from .bench import OWNER, scratch

_KEY = ModelKey(b"k" * 32)
_CHUNKS = (Chunk("tide.pdf", 1, "The tide rises."), Chunk("moon.txt", None, "Moon"))
_PDF = b"""%PDF-1.4
1 0 obj
<< /Type /Catalog /Pages 2 0 R >>
endobj
2 0 obj
<< /Type /Pages /Kids [4 0 R] /Count 1 >>
endobj
3 0 obj
<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>
endobj
4 0 obj
<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 5 0 R /Resources << /Font << /F1 3 0 R >> >> >>
endobj
5 0 obj
<< /Length 35 >>
stream
BT /F1 12 Tf 72 720 Td (Tide) Tj ET
endstream
endobj
trailer
<< /Root 1 0 R >>
%%EOF
"""


def _document(name: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        pages = read_document(name, data)
        if sum(len(page.text) for page in pages) > MAX_CHARACTERS:
            raise AssertionError("a document became more text than one has")
        chunks = list(cut(name, pages))
        if any(len(chunk.text) > CHARACTERS or "\x1b" in chunk.text for chunk in chunks):
            raise AssertionError("a chunk is too long, or has a control character")
        if chunks and parse_chunks(encode_chunks(chunks)) != tuple(chunks):
            raise AssertionError("chunks changed on their way")

    return read


def answer(data: bytes) -> None:
    """What a process that reads documents says, which may have been taken over by one."""
    for page in pages_of(data):
        if "\x1b" in page.text or (page.number is not None and page.number < 1):
            raise AssertionError("a page is none")


def chunks(data: bytes) -> None:
    """The file in a corpus, and an index over it."""
    read = parse_chunks(data)
    if encode_chunks(read) != data:
        raise AssertionError("chunks have two spellings")
    Index(read).search(read[0].text, 3)


def vectors(data: bytes) -> None:
    """The file of embeddings in a corpus, of two dimensions."""
    read = parse_vectors(data, 2)
    if read.tobytes() != data or (np.abs(np.linalg.norm(read, axis=1) - 1) > 0.01).any():
        raise AssertionError("a vector is none")


def results(data: bytes) -> None:
    """What a corpus service says it found, to a model service."""
    for source in parse_found(data):
        if source.cited()["digest"] != source.chunk.digest or not 0 <= source.score <= 1:
            raise AssertionError("a source is none")


def stores(data: bytes) -> None:
    """Which store such a service says it has."""
    parse_store(data)


def manifest(data: bytes) -> None:
    """A corpus's manifest, which its owner signed."""
    read = parse_corpus_manifest(data)
    if parse_corpus_manifest(msgspec.json.encode(read)) != read:
        raise AssertionError("what was written is another manifest")


def collection(data: bytes) -> None:
    """A user's collection, as a service's disk gives it: anything that was not written opens."""
    open_collection(data, _KEY)
    if data not in _sealed():
        raise AssertionError("what nobody sealed was opened")


def collection_content(data: bytes) -> None:
    """What is in one, once it was decrypted."""
    read = parse_collection(data)
    if parse_collection(msgspec.msgpack.encode(read)) != read or len(read.digest) != 64:
        raise AssertionError("what was written is another collection")


def collection_head(data: bytes) -> None:
    """The head of one, in a header of the service behind a model."""
    head = Head.of({HEAD_HEADER: data.decode("latin-1")})
    if head is None or Head.of(head.headers) != head:
        raise AssertionError("what was written is another head")


def upload(data: bytes) -> None:
    """A form with a document: its type, a line end, its body."""
    kind, _, body = data.partition(b"\n")
    name, content = uploaded(kind.decode("latin-1"), body)
    if content not in body or len(name.encode()) > len(body):
        raise AssertionError("a document has what was not sent")


@cache
def _sealed() -> list[bytes]:
    chunks = tuple(_CHUNKS)
    document = Document(f"file-{'0' * 32}", "a.txt", 7, 7, attached=True, chunks=chunks, embedder="", vectors=b"")
    made = Collection(1, collection_id(_KEY), 1, "", "notes", 7, (document,))
    return [seal_collection(made, _KEY), seal_collection(msgspec.structs.replace(made, documents=()), _KEY)]


def _contents() -> list[bytes]:
    return [msgspec.msgpack.encode(open_collection(one, _KEY)) for one in _sealed()]


def _forms() -> list[bytes]:
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nThe tide\r\n'
    other = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nassistants\r\n'
    kind = b"multipart/form-data; boundary=x\n"
    return [kind + other + part + b"--x--\r\n", kind + part, b'multipart/form-data; boundary="x"\n' + part + b"--x--"]


def _manifests() -> list[bytes]:
    folder = scratch("corpus")
    first = seal_corpus(_CHUNKS, folder / "1", name="sea", key=_KEY, owner=OWNER)
    second = seal_corpus(_CHUNKS, folder / "2", name="", key=_KEY, owner=OWNER, after=SealedCorpus.open(folder / "1"))
    (folder / "config.json").write_bytes(b"{}")
    model = {"config.json": folder / "config.json"}
    embeddings = Embeddings(model, np.eye(len(_CHUNKS), dtype=np.float32))
    with_models = seal_corpus(
        _CHUNKS, folder / "3", name="sea", key=_KEY, owner=OWNER, embeddings=embeddings, reranker=model
    )
    return [msgspec.json.encode(one) for one in (first, second, with_models)]


def _results(chunk: Chunk) -> bytes:
    attributes = {"digest": chunk.digest} | ({} if chunk.page is None else {"page": chunk.page})
    found = {"file_id": f"file-{'0' * 32}", "filename": chunk.source, "score": 0.5, "attributes": attributes}
    return msgspec.json.encode({"data": [found | {"content": [{"type": "text", "text": chunk.text}]}]})


def _docx() -> bytes:
    out, document = io.BytesIO(), docx.Document()
    document.add_paragraph("The tide rises.")
    document.save(out)
    return out.getvalue()


TARGETS = {
    "document-html": _document("a.html"),
    "document-pdf": _document("a.pdf"),
    "document-docx": _document("a.docx"),
    "document-text": _document("a.md"),
    "document-answer": answer,
    "corpus-chunks": chunks,
    "corpus-vectors": vectors,
    "corpus-manifest": manifest,
    "corpus-results": results,
    "corpus-stores": stores,
    "collection": collection,
    "collection-content": collection_content,
    "collection-head": collection_head,
    "upload": upload,
}
SEEDS = {
    "document-html": lambda: [b"<html><title>Tide</title><body><p>It <b>rises</b>&amp;<p>falls<!-- no -->", b"<p>x"],
    "document-pdf": lambda: [_PDF],
    "document-docx": lambda: [_docx()],
    "document-text": lambda: [b"# Tide\n\nIt rises. It falls.\r\n\r\n" * 100, b"\x1b[2J \x00"],
    "document-answer": lambda: [
        msgspec.msgpack.encode({"pages": [[1, "Tide"], [None, "\x1b"]]}),
        msgspec.msgpack.encode({"code": "unreadable-document", "reason": "it is empty"}),
    ],
    "corpus-chunks": lambda: [encode_chunks(_CHUNKS), b'["a.txt",0,"x"]'],
    "corpus-vectors": lambda: [np.array([[1, 0], [0.6, 0.8]], "<f4").tobytes(), np.array([np.nan, 1], "<f4").tobytes()],
    "corpus-manifest": _manifests,
    "corpus-results": lambda: [_results(_CHUNKS[0]), _results(_CHUNKS[0]).replace(b"tide", b"wave")],
    "corpus-stores": lambda: [b'{"object":"list","data":[{"id":"vs_%s","name":"sea"}]}' % (b"0" * 64), b'{"data":[]}'],
    "collection": lambda: [one[:200] for one in _sealed()],
    "collection-content": _contents,
    "collection-head": lambda: [f"{'0' * 64} 7 {'a' * 64}".encode(), f"{'0' * 64} deleted".encode()],
    "upload": _forms,
}
