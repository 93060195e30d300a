"""What the gate, /health and the public face take from whatever is served: a model, a corpus, or rules."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from confide.enclave.api.limits import Limits
from confide.enclave.api.metrics import Metrics
from confide.enclave.api.users import Users

if TYPE_CHECKING:
    from confide.enclave.api.traces import Traces


class Service(Protocol):
    """Something that answers questions."""

    @property
    def limits(self) -> Limits:
        """What each request is granted."""
        ...

    @property
    def metrics(self) -> Metrics:
        """What its operator may watch."""
        ...

    @property
    def users(self) -> Users | None:
        """Who may ask, by their licences; None where everybody may."""
        ...

    @property
    def traces(self) -> "Traces | None":
        """Where the requests' traces go; None for nowhere."""
        ...

    def require_sound(self) -> None:
        """Raises once its answers are known to be wrong."""
        ...

    def require_alive(self) -> None:
        """Raises while no answer can be made."""
        ...


@dataclass(frozen=True, kw_only=True)
class Engineless:
    """A service that waits for no engine, and whose matter was compared with what its owner signed before it began."""

    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    users: Users | None = None
    traces: "Traces | None" = None

    def require_sound(self) -> None:
        """Nothing is known that would make its answers wrong."""

    def require_alive(self) -> None:
        """There is no engine that could have stopped."""
