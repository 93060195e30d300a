"""Files of strangers, read within bounds: TOML, XML, YAML and units. No entity, alias or network, one typed error."""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from lxml import etree

from confide.errors import InvalidManifest
from confide.extras import named_extras
from confide.shallow_toml import require_shallow

MAX_BYTES: Final = 1 << 18
MAX_MARKS: Final = 20_000
MAX_ELEMENTS: Final = 10_000
MAX_DOCUMENTS: Final = 64
MAX_DEPTH: Final = 200

_DECIMAL: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")
_MERGE: Final = "tag:yaml.org,2002:merge"
_DOCTYPE: Final = "The file has a document type, whose entities could hide anything; remove it."


def text_of(content: bytes) -> str:
    """A file as text. InvalidManifest."""
    if len(content) > MAX_BYTES:
        raise InvalidManifest(f"The file has {len(content)} bytes; at most {MAX_BYTES} are read. Give it alone.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidManifest("The file is not UTF-8 text; convert it, with `iconv` for example.") from None


def read_toml(text: str) -> dict[str, Any]:
    """A TOML document. InvalidManifest."""
    require_shallow(text, "The file", InvalidManifest, MAX_MARKS)
    try:
        found = msgspec.toml.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _unreadable("TOML", error) from None
    return dict(found)


def read_json(text: str) -> dict[str, Any]:
    """A JSON object. InvalidManifest, also for a key that stands twice."""

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise InvalidManifest("A key of the file stands twice; write each once.")
        return made

    _require_flat(text)
    try:
        found = json.loads(text, object_pairs_hook=table)
    except (ValueError, RecursionError) as error:
        raise _unreadable("JSON", error) from None
    if not isinstance(found, dict):
        raise InvalidManifest("The file is no JSON object; give what the machine is asked for with.")
    return found


def read_xml(text: str) -> etree._Element:
    """The root of an XML document without a DTD. InvalidManifest."""
    if "<!DOCTYPE" in text:  # before the parser sees it: attributes are expanded whatever it is told
        raise InvalidManifest(_DOCTYPE)
    parser = etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(text.encode(), parser)
    except (etree.LxmlError, ValueError) as error:
        raise _unreadable("XML", error) from None
    if root.getroottree().docinfo.doctype:
        raise InvalidManifest(_DOCTYPE)
    if sum(1 for _ in root.iter()) > MAX_ELEMENTS:
        raise InvalidManifest(f"The file has more than {MAX_ELEMENTS} elements; no domain needs so many.")
    for element in root.iter():
        beside = (element.text, *(inner.tail for inner in element)) if len(element) else ()
        if any(text and not text.isspace() for text in beside):
            raise InvalidManifest("The file has text beside elements, which readers join in other ways; divide it.")
    return root


def read_yaml(text: str) -> list[Any]:
    """The documents of a YAML file. InvalidManifest, also for aliases and for keys that stand twice."""
    with named_extras():
        import yaml

    _require_flat(text)

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Without aliases, which make a small file large, and without keys of which only one reader sees the other."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise InvalidManifest("The file has an alias (*name), which is not followed; write it out.")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            made: dict[Any, Any] = {}
            for key, value in node.value:
                name = None if key.tag == _MERGE else self.construct_object(key, deep=True)
                if not isinstance(name, (str, int, float)) or name in made:
                    raise InvalidManifest("A key of the file stands twice, is none, or merges others; write each once.")
                made[name] = self.construct_object(value, deep=True)
            return made

        def construct_yaml_map(self, node: Any) -> Iterator[Any]:
            yield self.construct_mapping(node)

        def construct_number(self, node: Any) -> Any:
            """As text unless it is decimal: 22:22 is 1342 in YAML 1.1, and two ports to those who read 1.2."""
            if _DECIMAL.fullmatch(node.value):
                return int(node.value)
            return self.construct_scalar(node)

    Loader.add_constructor("tag:yaml.org,2002:map", Loader.construct_yaml_map)
    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", Loader.construct_number)
    found: list[Any] = []
    try:
        for document in yaml.load_all(text, Loader=Loader):
            if len(found) == MAX_DOCUMENTS:
                raise InvalidManifest(f"The file has more than {MAX_DOCUMENTS} documents; divide it.")
            found.append(document)
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise _unreadable("YAML", error) from None
    return found


def _require_flat(text: str) -> None:
    """InvalidManifest for brackets in brackets in brackets, over which the reader takes seconds before it gives up."""
    depth = 0
    for bracket in re.finditer(r"[\[\]{}]", text):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > MAX_DEPTH:
            raise InvalidManifest(f"The file has more than {MAX_DEPTH} brackets in one another; write it flat.")


_OTHER_SPACE: Final = re.compile(r"[^\S \t\r\n]|\0|\r(?!\n)")
_SETTING: Final = re.compile(r"([A-Za-z][A-Za-z0-9]*)\s*=\s*(.*)")


def read_unit(text: str) -> dict[str, list[tuple[str, str]]]:
    """A systemd unit: its settings in their order, by section. InvalidManifest. (systemd.syntax(7))"""
    sections: dict[str, list[tuple[str, str]]] = {}
    settings: list[tuple[str, str]] | None = None
    if _OTHER_SPACE.search(text):
        raise InvalidManifest(
            "The unit has a space or an end of line that systemd takes for a letter; write a plain one."
        )
    for line in _joined(text):
        if line.startswith("[") and line.endswith("]"):
            settings = sections.setdefault(line[1:-1], [])
            continue
        setting = _SETTING.fullmatch(line)
        if setting is None or settings is None:
            raise InvalidManifest("A line of the unit is neither a section nor a setting; correct it.")
        settings.append((setting[1], setting[2].strip()))
    return sections


def _joined(text: str) -> Iterator[str]:
    """Lines without comments, those that end in a backslash with the next."""
    parts: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith(("#", ";")) or (not stripped and not parts):
            continue
        parts.append(stripped.removesuffix("\\"))
        if not stripped.endswith("\\"):
            yield " ".join(parts).strip()
            parts = []
    if parts:
        yield " ".join(parts).strip()


def _unreadable(what: str, error: Exception) -> InvalidManifest:
    if isinstance(error, RecursionError):
        reason = "it is nested too deeply"
    else:
        # Of PyYAML's errors not the text, which quotes the file.
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or error
        reason = " ".join(str(said).split())[:120] + (f", line {mark.line + 1}" if mark else "")
    return InvalidManifest(f"The file is no {what} ({reason}); correct that place.")
