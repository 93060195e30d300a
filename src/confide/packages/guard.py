"""A guard's rules: phrases that a prompt must not have, as their owner signed them. Nothing in them is secret.

Words are compared in NFKC, without case and without invisible characters; letters of other alphabets that look the same
are others. A phrase is words one after the other, whatever stands between them; a `*` at its end stands for any rest of
the last word. Matching is linear in the text, whatever the phrases are.
"""

import hashlib
import re
import unicodedata
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import msgspec

from confide.errors import InvalidPackage
from confide.packages.manifest import Name, Record
from confide.packages.owner import OwnerKey, OwnerPublicKey
from confide.packages.sealed.draft import draft_folder
from confide.packages.sealed.manifest import read_signed_manifest, write_signed_manifest
from confide.packages.signing import package_files
from confide.shallow_toml import require_shallow

MAX_PHRASES: Final = 4096
MAX_WORDS: Final = 16
_MAX_WORD: Final = 64
_MAX_BYTES: Final = 2 << 20
SIGNED_LABEL: Final = b"confide guard 1\0"
_DIGEST_LABEL: Final = b"confide guard rules 1\0"
_WORD: Final = re.compile(r"[^\W_]+")

_Phrase = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
_Phrases = Annotated[tuple[_Phrase, ...], msgspec.Meta(min_length=1, max_length=MAX_PHRASES)]
_Refusal = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class GuardManifest(Record, frozen=True):
    """name: what people call it. refusal: what whoever asks is told. phrases: see above."""

    format: Literal[1]
    kind: Literal["guard"]
    name: Name
    refusal: _Refusal
    phrases: _Phrases

    @property
    def digest(self) -> str:
        """Of the rules, in hexadecimal: SHA-256 over a label and the JSON list of name, refusal and phrases."""
        return hashlib.sha256(_DIGEST_LABEL + msgspec.json.encode([self.name, self.refusal, self.phrases])).hexdigest()


class _Draft(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal[1] = msgspec.field(name="confide-guard")
    name: Name
    refusal: _Refusal
    phrases: _Phrases


@dataclass
class _Node:
    """Where phrases have come to. ends: whether one ends here. beginnings: of last words, whose rest may be any."""

    following: dict[str, "_Node"] = field(default_factory=dict)
    ends: bool = False
    beginnings: set[str] = field(default_factory=set)

    def finishes(self, word: str) -> bool:
        """Whether a phrase ends with this word as the next one."""
        return any(word[:size] in self.beginnings for size in range(1, min(len(word), _MAX_WORD) + 1))


class Rules:
    """The phrases, ready to look for."""

    def __init__(self, phrases: Sequence[str]) -> None:
        """InvalidPackage for a phrase without words, with too many, or with a `*` elsewhere than at its end."""
        self._first = _Node()
        for phrase in phrases:
            open_end = phrase.endswith("*")
            words = _words(phrase.removesuffix("*"))
            sound = 1 <= len(words) <= MAX_WORDS and all(len(word) <= _MAX_WORD for word in words)
            if not sound or "*" in phrase[:-1] or (open_end and not phrase[-2:-1].isalnum()):
                raise InvalidPackage(
                    f"A phrase is 1 to {MAX_WORDS} words of at most {_MAX_WORD} letters, with a * at most right after "
                    "the last; correct the guard's rules."
                )
            node = self._first
            for word in words[:-1]:
                node = node.following.setdefault(word, _Node())
            if open_end:
                node.beginnings.add(words[-1])
            else:
                node.following.setdefault(words[-1], _Node()).ends = True

    def match(self, text: str) -> bool:
        """Whether a phrase is in the text."""
        words = _words(text)
        return any(self._begins(words, start) for start in range(len(words)))

    def _begins(self, words: Sequence[str], at: int) -> bool:
        node = self._first
        for word in words[at : at + MAX_WORDS]:
            if node.beginnings and node.finishes(word):
                return True
            following = node.following.get(word)
            if following is None:
                return False
            if following.ends:
                return True
            node = following
        return False


@dataclass(frozen=True)
class GuardPackage:
    """Rules whose owner signed them."""

    manifest: GuardManifest
    owner: OwnerPublicKey
    rules: Rules

    @classmethod
    def open(cls, folder: Path | str, trusted: Container[OwnerPublicKey] | None = None) -> Self:
        """Read the rules, and check who signed them. UntrustedOwner; InvalidPackage for whatever else is wrong."""
        folder = Path(folder)
        content, owner = read_signed_manifest(folder, SIGNED_LABEL, trusted)
        if surplus := sorted(package_files(folder)):
            raise InvalidPackage(f"{folder / surplus[0]} is not part of the rules that their owner signed; remove it.")
        manifest = parse_guard_manifest(content)
        return cls(manifest, owner, Rules(manifest.phrases))


def parse_guard_manifest(content: bytes) -> GuardManifest:
    """The rules in a file's bytes. InvalidPackage for anything else."""
    try:
        if len(content) > _MAX_BYTES:
            raise ValueError("too large")
        return msgspec.json.decode(content, type=GuardManifest)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise InvalidPackage("These are no rules of a guard; make them with `confide guard sign`.") from None


def sign_rules(draft: str, out: Path | str, owner: OwnerKey) -> GuardManifest:
    """Sign the rules of a TOML file, into the folder `out`. InvalidPackage; ConfideError where the folder exists."""
    if len(draft) > _MAX_BYTES:
        raise InvalidPackage(f"A guard's rules have at most {_MAX_BYTES >> 20} MiB; leave some out.")
    require_shallow(draft, "The file of rules", InvalidPackage, 2 * MAX_PHRASES)
    try:
        read = msgspec.toml.decode(draft, type=_Draft)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        reason = str(error)[:300].rstrip(".")
        raise InvalidPackage(f"The guard's rules cannot be understood: {reason}; correct them.") from None
    Rules(read.phrases)
    manifest, out = GuardManifest(1, "guard", read.name, read.refusal, read.phrases), Path(out)
    with draft_folder(out) as folder:
        write_signed_manifest(folder, manifest, SIGNED_LABEL, owner)
        folder.rename(out)
    return manifest


def texts_of(value: object) -> Iterator[str]:
    """Every text in a JSON value, names of members included, in no order. However deep it is."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str() as text:
                yield text
            case dict() as members:
                waiting += [*members, *members.values()]
            case list() as items:
                waiting += items


def _words(text: str) -> list[str]:
    visible = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    return _WORD.findall(unicodedata.normalize("NFKC", visible).casefold())
