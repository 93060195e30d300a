"""Checks of a dataset that have to pass before anything is trained on it, and how others add their own.

A check counts, and says in words that hold nothing of the texts why it does not pass. That it passed says what it
counts and no more: patterns find what looks like personal data, not what is. One that is not Confide's comes as a
module with a single function, named with the SHA-256 of its file, so that owners approve its very bytes:

    def check(texts: list[tuple[str, str]], arguments: tuple[str, ...]) -> dict[str, int]: ...

It is given each text with its licence, and the arguments of the recipe. It returns what it counted, and raises
ValueError where the check does not pass.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from typing import Annotated, Any, Final, Literal

import msgspec

from confide.attest.configuration import Count, Hex32, Word
from confide.attest.training import DatasetCheck, Passed, Setting
from confide.certify.corpus import Corpus
from confide.errors import InvalidCorpus

_Limit = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
Kind = Literal["email", "phone", "iban", "card", "ip-address"]
KINDS: Final[tuple[Kind, ...]] = ("email", "phone", "iban", "card", "ip-address")
_PATTERNS: Final[Mapping[str, re.Pattern[str]]] = {
    "email": re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"),
    "phone": re.compile(r"(?<![\w+])(?:\+|00)[1-9](?:[ ()./-]{0,2}\d){7,14}(?!\d)"),
    "iban": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
    "card": re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)"),
    "ip-address": re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.])"),
}
"""Every repetition is bounded, and what may stand before a match is looked at, so that each is linear in the text."""
_SPACE: Final = re.compile(r"\s+")
_WORDS: Final = re.compile(r"\w+")
_PLUGIN_FUNCTION: Final = "check"
_MAX_PLUGIN_BYTES: Final = 1 << 20


class _Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="check", rename="kebab"):
    """A check with its settings."""

    def count(self, corpus: Corpus) -> dict[str, int]:
        """What is counted. InvalidCorpus where the check does not pass."""
        raise NotImplementedError


class Size(_Check, frozen=True, tag="size"):
    """There are at least so many texts and characters, and no text is longer than that; 0 for no limit."""

    least_texts: _Limit = 1
    least_characters: _Limit = 0
    longest_text: _Limit = 0

    def count(self, corpus: Corpus) -> dict[str, int]:
        lengths = [len(one.text) for one in corpus.texts]
        found = {"texts": len(lengths), "characters": sum(lengths), "longest-text": max(lengths)}
        if found["texts"] < self.least_texts or found["characters"] < self.least_characters:
            raise InvalidCorpus("The corpus is smaller than the check `size` asks for; add texts.")
        if self.longest_text and found["longest-text"] > self.longest_text:
            raise InvalidCorpus("A text is longer than the check `size` allows; divide it.")
        return found


class Duplicates(_Check, frozen=True, tag="duplicates"):
    """At most so many texts are another one again, without regard to case, spaces and forms of Unicode (NFKC)."""

    at_most: _Limit = 0

    def count(self, corpus: Corpus) -> dict[str, int]:
        plain = Counter(_plain(one.text) for one in corpus.texts)
        return _at_most(self.at_most, {"duplicates": len(corpus.texts) - len(plain)}, "duplicates")


class Licences(_Check, frozen=True, tag="licences"):
    """Each text is under one of these licences, as the corpus says."""

    allowed: Annotated[tuple[Word, ...], msgspec.Meta(min_length=1, max_length=256)]

    def count(self, corpus: Corpus) -> dict[str, int]:
        found = Counter(one.licence for one in corpus.texts)
        others = sum(count for licence, count in found.items() if licence not in self.allowed)
        if others:
            raise InvalidCorpus(
                f"{others} texts are under none of the licences that the check `licences` allows; omit them."
            )
        return {"texts": len(corpus.texts), "licences": len(found)}


class PersonalData(_Check, frozen=True, tag="personal-data"):
    """At most so many places look like personal data of these kinds. Cards and IBANs have to have a right check digit.

    It finds patterns: no name, and nothing that is written in words.
    """

    kinds: Annotated[tuple[Kind, ...], msgspec.Meta(min_length=1, max_length=len(KINDS))] = KINDS
    at_most: _Limit = 0

    def count(self, corpus: Corpus) -> dict[str, int]:
        found: dict[str, int] = {}
        for kind in self.kinds:
            found[kind] = sum(1 for one in corpus.texts for _ in _matches(kind, one.text))
        return _at_most(self.at_most, found, "personal-data")


class WordList(_Check, frozen=True, tag="words"):
    """At most so many words of the texts are on this list, without regard to case."""

    words: Annotated[tuple[Word, ...], msgspec.Meta(min_length=1, max_length=1000)]
    at_most: _Limit = 0

    def count(self, corpus: Corpus) -> dict[str, int]:
        listed = {word.casefold() for word in self.words}
        found = sum(word.casefold() in listed for one in corpus.texts for word in _WORDS.findall(one.text))
        return _at_most(self.at_most, {"listed-words": found}, "words")


class Plugin(_Check, frozen=True, tag="plug-in"):
    """A check by a module that is installed beside Confide, if its file has this SHA-256."""

    module: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_]{0,99}\Z")]
    sha256: Hex32
    arguments: Annotated[tuple[Word, ...], msgspec.Meta(max_length=32)] = ()

    def count(self, corpus: Corpus) -> dict[str, int]:
        source = self._source()
        names: dict[str, Any] = {"__name__": self.module}
        try:
            exec(compile(source, self.module, "exec"), names)  # noqa: S102 - just these bytes are what owners approve
            found = names[_PLUGIN_FUNCTION]([(one.text, one.licence) for one in corpus.texts], self.arguments)
            return msgspec.convert(found, dict[Word, Count])
        except Exception:  # noqa: BLE001 - its words could be the dataset's
            raise InvalidCorpus(f"The check `plug-in` of {self.module} does not pass; ask who wrote it why.") from None

    def _source(self) -> bytes:
        """Its file, which may change as soon as it is read."""
        spec = PathFinder.find_spec(self.module)
        try:
            with open(spec.origin if spec and spec.origin else "", "rb") as file:
                source = file.read(_MAX_PLUGIN_BYTES + 1)
        except OSError:
            raise InvalidCorpus(f"There is no module {self.module} for the check `plug-in`; install it.") from None
        if hashlib.sha256(source).hexdigest() != self.sha256:
            raise InvalidCorpus(
                f"The module {self.module} is another one than the check `plug-in` names; compare them."
            )
        return source


AnyCheck = Size | Duplicates | Licences | PersonalData | WordList | Plugin


def described(check: AnyCheck) -> DatasetCheck:
    """The check as a run names it, with every setting."""
    settings = msgspec.to_builtins(check)
    return DatasetCheck(settings.pop("check"), msgspec.convert(settings, dict[str, Setting]))


def passed(checks: tuple[DatasetCheck, ...], corpus: Corpus) -> tuple[Passed, ...]:
    """What each check of a run counted. InvalidCorpus where one does not pass, or where there is no such check."""
    return tuple(Passed(one.check, _typed(one).count(corpus)) for one in checks)


def _typed(one: DatasetCheck) -> AnyCheck:
    try:
        typed: AnyCheck = msgspec.convert({"check": one.check, **one.settings}, AnyCheck)
    except msgspec.ValidationError:
        raise InvalidCorpus(
            "The run names a check of the dataset that there is not, or not so; see docs/train.md."
        ) from None
    return typed


def _at_most(limit: int, found: dict[str, int], name: str) -> dict[str, int]:
    if (total := sum(found.values())) > limit:
        raise InvalidCorpus(f"The check `{name}` found {total}, and allows {limit}; look through the corpus.")
    return found


def _plain(text: str) -> bytes:
    plain = _SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
    return hashlib.sha256(plain.encode()).digest()


def _matches(kind: Kind, text: str) -> Iterator[str]:
    for match in _PATTERNS[kind].finditer(text):
        found = match[0]
        if (kind == "card" and not _luhn(found)) or (kind == "iban" and not _mod_97(found)):
            continue
        yield found


def _luhn(number: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    digits = [int(digit) for digit in number if digit.isdecimal()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _mod_97(iban: str) -> bool:
    """ISO 13616-1, check digits by ISO/IEC 7064."""
    plain = iban.replace(" ", "")
    return int("".join(str(int(letter, 36)) for letter in plain[4:] + plain[:4])) % 97 == 1
