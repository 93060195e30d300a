"""The heads of corpora that this person has met: see `confide.client.met`."""

from typing import Final

from confide.attest.configuration import CorpusServed
from confide.client.met import Met, require_newest
from confide.errors import CorpusRefused

_WHAT: Final = "corpora"
FILE_NAME: Final = f"{_WHAT}.json"


def require_current(served: CorpusServed, *, simulated: bool) -> None:
    """Remember a head of verified evidence. CorpusRefused where a newer one, or another of its number, was met before.

    CorpusRefused also where nobody can tell: the file is damaged, or cannot be read or written.
    """

    def older(before: CorpusServed) -> CorpusRefused:
        return _older(served, before)

    name = f"{served.owner}/{served.corpus}"
    require_newest(Met[CorpusServed], _WHAT, name, served, lambda one: one.head, older, simulated=simulated)


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
