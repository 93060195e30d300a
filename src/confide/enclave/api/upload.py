"""A document that comes as a form (RFC 7578), which stays in memory: on a disk it would lie in the clear."""

from dataclasses import dataclass, field
from typing import Final

from confide.errors import RequestRefused
from confide.extras import named_extras

CONTENT: Final = "file"
"""The field that the document is in, as OpenAI's API calls it."""
_MAX_PARTS: Final = 8
_FORM: Final = b"multipart/form-data"
_LONGEST_BOUNDARY: Final = 70
"""RFC 2046, 5.1.1."""


@dataclass
class _Part:
    disposition: bytearray = field(default_factory=bytearray)
    content: bytearray = field(default_factory=bytearray)


@dataclass
class _Parts:
    """What the parser calls. Names of headers and their values come in pieces."""

    all: list[_Part] = field(default_factory=list)
    name: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    ended: bool = False

    def begin(self) -> None:
        if len(self.all) == _MAX_PARTS:
            raise _no_form()
        self.all.append(_Part())

    def add_name(self, data: bytes, start: int, end: int) -> None:
        self.name += data[start:end]

    def add_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def end_header(self) -> None:
        if self.name.lower() == b"content-disposition":
            self.all[-1].disposition = self.value
        self.name, self.value = bytearray(), bytearray()

    def add_content(self, data: bytes, start: int, end: int) -> None:
        self.all[-1].content += memoryview(data)[start:end]

    def end(self) -> None:
        self.ended = True


def uploaded(content_type: str, body: bytes) -> tuple[str, bytes]:
    """Name and content of the one document in a form beside other fields. RequestRefused for anything else."""
    with named_extras():
        from python_multipart import MultipartParser
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import parse_options_header
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != _FORM or not 0 < len(boundary) <= _LONGEST_BOUNDARY:
        raise _no_form()
    parts = _Parts()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.begin,
                "on_part_data": parts.add_content,
                "on_header_field": parts.add_name,
                "on_header_value": parts.add_value,
                "on_header_end": parts.end_header,
                "on_end": parts.end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise _no_form() from None
    files = []
    for part in parts.all:
        _, said = parse_options_header(bytes(part.disposition))
        if said.get(b"name") == CONTENT.encode():
            files.append((said.get(b"filename", b""), part.content))
    if not parts.ended or len(files) != 1:
        raise _no_form()
    [(name, content)] = files
    try:
        return name.decode(), bytes(content)
    except UnicodeDecodeError:
        raise _no_form() from None


def _no_form() -> RequestRefused:
    return RequestRefused(
        f"A document comes as multipart/form-data with one file, in the field `{CONTENT}`; send that.", CONTENT
    )
