"""The owners whose shells a person runs: a file of public keys, one to a line, each with an optional name.

Beside them stand the keys that count no more, and which key took another's place. What owners say of their keys is
taken in from statements they signed; nothing that was taken in is ever taken back by a later statement.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from confide.disk.files import read_bounded, replace_file
from confide.disk.home import home, make_home
from confide.errors import OwnerKeyError, UntrustedOwner
from confide.packages.owner import OwnerPublicKey
from confide.packages.succession import Statement, Withdrawal

TRUSTED_NAME: Final = "trusted-owners"
MAX_NAME: Final = 100
MAX_FILE: Final = 1 << 20
"""Bytes of a list of owners; a larger one is refused."""
_DISTRUSTED, _WITHDRAWN, _SUCCEEDED = "distrusted", "withdrawn", "succeeded"

TrustedOwners = dict[OwnerPublicKey, str]
"""Public keys with what a person calls them, or an empty name."""


@dataclass
class OwnerBook:
    """What a person knows of owners' keys.

    names: of those that were trusted, whether they still are or not. distrusted: by the person. withdrawn: by their
    owner, for good. successors: the one key that took each one's place, by the first statement that was accepted.
    """

    names: TrustedOwners = field(default_factory=dict)
    distrusted: set[OwnerPublicKey] = field(default_factory=set)
    withdrawn: set[OwnerPublicKey] = field(default_factory=set)
    successors: dict[OwnerPublicKey, OwnerPublicKey] = field(default_factory=dict)

    @property
    def trusted(self) -> TrustedOwners:
        """Those whose signatures count."""
        return {key: name for key, name in self.names.items() if key not in self.distrusted | self.withdrawn}

    def later(self, owner: OwnerPublicKey) -> list[OwnerPublicKey]:
        """The keys that took an owner's place, one after the other."""
        found: list[OwnerPublicKey] = []
        while (following := self.successors.get(owner)) is not None and following not in found:
            found.append(following)
            owner = following
        return found

    def other_keys(self, owner: OwnerPublicKey) -> set[OwnerPublicKey]:
        """Of the same owner: the trusted ones that came before or after this one."""
        line = {*self.later(owner), *(earlier for earlier in self.successors if owner in self.later(earlier))}
        return line & self.trusted.keys() - {owner}

    def take_in(self, statement: Statement) -> bool:
        """Whether a statement, whose signatures hold, says something of a known key that was not known.

        OwnerKeyError where a key has two successors: somebody else holds it too.
        """
        owner = OwnerPublicKey.parse(statement.owner)
        if isinstance(statement, Withdrawal):
            signer = OwnerPublicKey.parse(statement.signer)
            # By itself a key may always be withdrawn: a thief who does so loses what was stolen.
            later = signer in self.later(owner) and signer in self.trusted
            if owner in self.withdrawn or not (signer == owner or later):
                return False
            self.withdrawn.add(owner)
            return True
        return self._succeed(owner, OwnerPublicKey.parse(statement.successor))

    def _succeed(self, owner: OwnerPublicKey, successor: OwnerPublicKey) -> bool:
        known = self.successors.get(owner)
        if known == successor:
            return False
        if known is not None:
            raise OwnerKeyError(
                f"The key {owner.fingerprint} has named two successors, {known.fingerprint} before and now "
                f"{successor.fingerprint}: somebody else may hold it. Nothing was changed; ask the owner by a way you "
                "trust, and end the trust in the wrong one with `confide owner distrust`."
            )
        if owner not in self.trusted or successor in self.distrusted | self.withdrawn or owner in self.later(successor):
            return False
        self.successors[owner] = successor
        self.names[successor] = self.names.get(successor) or self.names[owner]
        return True


def trusted_path() -> Path:
    """Where the file lies."""
    return home() / TRUSTED_NAME


def trusted_owners() -> TrustedOwners:
    """Everyone trusted; nobody where there is no file. OwnerKeyError for a file that cannot be understood."""
    return read_owners().trusted


def accepted_owners(owner: str | bytes | None) -> TrustedOwners:
    """The one owner that is asked for, else everyone trusted. UntrustedOwner for a key that its owner withdrew."""
    book = read_owners()
    if owner is None:
        return book.trusted
    key = OwnerPublicKey.parse(owner)
    _require_not_withdrawn(book, key)
    return {key: book.names.get(key, "")}


def other_keys(owner: OwnerPublicKey) -> set[OwnerPublicKey]:
    """See `OwnerBook.other_keys`."""
    return read_owners().other_keys(owner)


def read_owners() -> OwnerBook:
    """All that stands in the file; nothing where there is none. OwnerKeyError for one that cannot be understood."""
    path = trusted_path()
    try:
        content = read_bounded(path, MAX_FILE)
    except FileNotFoundError:
        return OwnerBook()
    except OSError as error:
        raise OwnerKeyError(f"{path} cannot be read ({error.strerror}); make it readable again.") from error
    return parse_owners(content)


def parse_owners(content: bytes) -> OwnerBook:
    """The owners in a file's content. OwnerKeyError names the first line that is odd."""
    if len(content) > MAX_FILE:
        raise OwnerKeyError(f"The file {TRUSTED_NAME} is too large; remove what is not a key from it.")
    book = OwnerBook()
    for number, line in enumerate(content.decode(errors="replace").split("\n"), start=1):
        try:
            _read_line(book, line)
        except OwnerKeyError as error:
            raise OwnerKeyError(f"Line {number} of {TRUSTED_NAME} is not a key and a name; correct it.") from error
    return book


def _read_line(book: OwnerBook, line: str) -> None:
    word, *rest = line.split(None, 1) or [""]
    match word:
        case "":
            return
        case "distrusted":
            book.distrusted.add(OwnerPublicKey.parse("".join(rest)))
        case "withdrawn":
            book.withdrawn.add(OwnerPublicKey.parse("".join(rest)))
        case "succeeded":
            old, new = [*"".join(rest).split(), "", ""][:2]
            book.successors[OwnerPublicKey.parse(old)] = OwnerPublicKey.parse(new)
        case _:
            book.names[OwnerPublicKey.parse(word)] = _checked_name("".join(rest))


def trust(key: OwnerPublicKey, name: str = "") -> None:
    """Add an owner, or give one a new name.

    OwnerKeyError where the name cannot stand on a line, UntrustedOwner for a key that its owner withdrew.
    """
    book = read_owners()
    _require_not_withdrawn(book, key)
    book.names[key] = _checked_name(name) or book.names.get(key, "")
    book.distrusted.discard(key)
    _write(book)


def find_owner(named: str) -> OwnerPublicKey:
    """The trusted owner of this key, fingerprint or name. OwnerKeyError where there is none, or several."""
    found = [key for key, name in trusted_owners().items() if named in (str(key), key.fingerprint, name)]
    if len(found) != 1:
        how_many = "Several trusted owners are" if found else "No trusted owner is"
        raise OwnerKeyError(f"{how_many} called {named!r}; give the key as `confide owner list` shows it.")
    return found[0]


def distrust(key: OwnerPublicKey) -> None:
    """Trust an owner no more, whatever is said of the key by itself or by others. OwnerKeyError for one not trusted."""
    book = read_owners()
    if key not in book.trusted:
        raise OwnerKeyError(f"The owner {key.fingerprint} is not trusted; `confide owner list` shows who is.")
    book.distrusted.add(key)
    _write(book)


def accept(statements: Iterable[Statement]) -> list[Statement]:
    """Take in what owners say of their keys, and return what was new. OwnerKeyError as `OwnerBook.take_in`.

    statements: with signatures that hold. Those about keys that nobody here trusts are left out.
    """
    book = read_owners()
    new = [statement for statement in statements if book.take_in(statement)]
    if new:
        _write(book)
    return new


def _require_not_withdrawn(book: OwnerBook, key: OwnerPublicKey) -> None:
    if key in book.withdrawn:
        later = [one for one in book.later(key) if one in book.trusted]
        instead = f"its owner signs with {later[-1].fingerprint} now" if later else "ask the owner for the new one"
        raise UntrustedOwner(f"The key {key.fingerprint} was withdrawn by its owner; {instead}.")


def _write(book: OwnerBook) -> None:
    lines = [f"{owner} {called}".rstrip() for owner, called in book.names.items()]
    lines += [f"{_SUCCEEDED} {old} {new}" for old, new in book.successors.items()]
    for word, keys in ((_DISTRUSTED, book.distrusted), (_WITHDRAWN, book.withdrawn)):
        lines += sorted(f"{word} {key}" for key in keys)
    make_home()
    try:
        replace_file(trusted_path(), "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise OwnerKeyError(
            f"{trusted_path()} cannot be written ({error.strerror}); set CONFIDE_HOME to a folder of yours."
        ) from error


def _checked_name(name: str) -> str:
    name = name.strip()
    if len(name) > MAX_NAME or not name.isprintable():
        raise OwnerKeyError(f"An owner's name is at most {MAX_NAME} printable characters; choose a shorter one.")
    return name
