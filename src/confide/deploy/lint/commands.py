"""What is found in command lines and in environments, whatever file they stand in."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from confide.deploy.lint import rules
from confide.deploy.lint.rules import Finding

_SECRET: Final = re.compile(
    r"(?i)(?:^|_)(?:pass(?:word|wd|phrase)?|token|secret|credentials?|(?:api|private|access|secret|model)_?key)$"
)
"""Names of what holds a secret; those that name a file of it end otherwise."""
_PRELOADS: Final = ("LD_PRELOAD", "LD_AUDIT")
_UNSAFE: Final = re.compile(r"(?<![\w\-])--(?:insecure|simulated)-[a-z\-]*")
_SSH: Final = re.compile(r"""(?:^|[/\s;&|('"`])(?:sshd|dropbear)(?:$|[\s;&|)'"`])""")
"""Also inside a word, which can be a whole script: sh -c '...'."""
_NITRO: Final = re.compile(r"(?<![\w\-])nitro-cli(?![\w\-])")
_DEBUGGED: Final = re.compile(r"(?<![\w\-])--(?:debug-mode|attach-console)(?![\w\-])")
_DIGEST: Final = re.compile(r"@sha256:[0-9a-f]{64}$")


def in_command(words: Iterable[str], place: str, *, gramine: bool = False) -> Iterator[Finding]:
    """Faults of a command. gramine: whether it runs there, where the ways out cannot be closed."""
    words = list(words)
    starts_enclaves = any(map(_NITRO.search, words))
    for word in words:
        for option in _DEBUGGED.findall(word) if starts_enclaves else ():
            yield Finding(rules.ENCLAVE_DEBUG, f"{place} {option}")
        for option in _UNSAFE.findall(word):
            open_egress = gramine and option == "--insecure-open-egress"
            yield Finding(rules.OPEN_EGRESS if open_egress else rules.INSECURE_OPTION, f"{place} {option}")
        if _SSH.search(word):
            yield Finding(rules.SSH, place)
        if any(f"{name}=" in word for name in _PRELOADS):
            yield Finding(rules.LD_PRELOAD, place)


def in_variable(name: str, value: object, place: str) -> Iterator[Finding]:
    """Faults of one environment variable whose value stands in the file, where commands may take words from it."""
    if name in _PRELOADS:
        yield Finding(rules.LD_PRELOAD, place)
    if isinstance(value, str) and _UNSAFE.search(value):
        yield Finding(rules.INSECURE_OPTION, place)
    if value and _SECRET.search(name):
        yield Finding(rules.SECRET_IN_FILE, place)


def in_image(image: object, place: str) -> Iterator[Finding]:
    """A container's image, which has to be named by its digest."""
    if not (isinstance(image, str) and _DIGEST.search(image)):
        yield Finding(rules.IMAGE_BY_TAG, place)


def mapping(value: object) -> dict[str, object]:
    """A value where a table is expected; nothing is in any other."""
    return {str(key): one for key, one in value.items()} if isinstance(value, dict) else {}


def sequence(value: object) -> list[object]:
    """A value where a list is expected; nothing is in any other."""
    return value if isinstance(value, list) else []


def words_of(value: object) -> list[str]:
    """A command, given as a list or as one text."""
    return value.split() if isinstance(value, str) else [str(one) for one in sequence(value)]
