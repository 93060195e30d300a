"""Known answers of models that several tests seal, made once."""

from collections.abc import Callable

from confide.enclave.boot import examine
from confide.packages.sealed.known_answers import KnownAnswers
from confide.packages.sealed.package import UnlockedPackage

_known: dict[str, KnownAnswers | None] = {}


def examined(model: str) -> Callable[[UnlockedPackage], KnownAnswers | None]:
    """As `examine`, for one model, which is only tried when it is sealed first."""

    def known(unlocked: UnlockedPackage) -> KnownAnswers | None:
        if model not in _known:
            _known[model] = examine(unlocked)
        return _known[model]

    return known
