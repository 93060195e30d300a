"""A new version takes the place of an old one: its key's policy allows both for a time, it is appraised, traffic moves.

How far it got is written down nowhere. Each step asks what is so: the owner's key store which policy the key has, and
the machines who answers where. So it can be cut off anywhere, and begun again it finds done what is done. A machine's
evidence decides; what a file of the balancer's says, or that a command ended well, does not.
"""

import math
import re
import secrets
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, Protocol, Self
from urllib.parse import urlsplit

import httpx

from confide.attest.policy import AnyPolicy
from confide.attest.transition import Transition, ask_the_same
from confide.broker.appraisal import channel_key, of_the_model
from confide.broker.change import change_policy
from confide.broker.store import Conditions, KeyStore
from confide.client.attested import NONCE_BYTES, fetch_attestation, verify_workload
from confide.client.hop import TIMEOUT, caused_by, read_bounded, sending, server_address, tls_context
from confide.client.relying_party import RelyingParty, Verified
from confide.client.standing import Standing
from confide.client.transport import EncryptedTransport
from confide.disk.files import read_bounded as read_file
from confide.disk.files import replace_file
from confide.errors import PASSING, AttestationError, ConnectionLost, DeployError, RolloutStopped
from confide.printable import quoted

SERVERS, REPLICAS = "confide.servers", "confide.replicas"
"""Names of the files for nginx."""
_INSIDE: Final = "http://workload.invalid"
"""Stands for the workload above the encrypted channel; the name is never looked up."""
_LOOKS: Final = 60
"""How often, at most and once a second, it is looked whether traffic has moved."""
_QUIET_LOOKS: Final = 3
"""So often in a row nothing runs at the old version before it has drained: a balancer may still hand on a request."""
_COMMAND_SECONDS: Final = 60.0
_MAX_METRICS_BYTES: Final = 1 << 20
_MAX_FILE_BYTES: Final = 1 << 20
_BUSY: Final = (b"confide_answers_running", b"confide_requests_waiting")
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.\-]{0,251}[A-Za-z0-9])?|[0-9a-f:.]{2,45}")


@dataclass(frozen=True)
class Step:
    """One step, as far as it went. state: done now, found done already, still to come, or left out.

    facts: what people and programs are told of it.
    """

    name: Literal["allow", "appraise", "switch", "drain", "retire"]
    state: Literal["done", "already", "waiting", "skipped"]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KeyPolicies:
    """The policies of one key. folder: of its store and the log. new: what shall be asked for once all is over."""

    folder: Path
    store: KeyStore
    key: str
    new: AnyPolicy

    @property
    def current(self) -> Conditions:
        """What the key is bound to now. UnknownModelKey."""
        return self.store.get(self.key).conditions

    @property
    def new_version(self) -> AnyPolicy:
        """What the new version's evidence has to show, the key's model included. InvalidPolicy for another kind."""
        return of_the_model(replace(self.current, policy=self.new))

    def allow(self, period: timedelta, now: datetime) -> Step:
        """Allow both versions for a time from now on, unless that has begun already: then its end stays as it is.

        InvalidPolicy; RolloutStopped where the time of another rollout is not over. Back to the version before is not
        another one.
        """
        policy = self.current.policy
        if ask_the_same(policy, self.new):
            return Step("allow", "already", {"until": None})
        under_way = Transition.read(policy)
        if under_way is not None:
            if ask_the_same(under_way.new, self.new):
                return Step("allow", "already", {"until": _utc(under_way.until)})
            if now <= under_way.until and not ask_the_same(under_way.old, self.new):
                raise RolloutStopped(
                    f"A rollout to another policy is under way for this key, until {_utc(under_way.until)}; finish it, "
                    "go back to the version before it, or wait until then."
                )
            policy = under_way.new
        transition = Transition(policy, self.new, (now + period).replace(microsecond=0))
        self._bind(transition.policy(), now)
        return Step("allow", "done", {"until": _utc(transition.until)})

    def retire(self, now: datetime) -> Step:
        """Ask for the new version alone once the old one's time is over, which its policy alone ended by then."""
        policy = self.current.policy
        if ask_the_same(policy, self.new):
            return Step("retire", "already")
        under_way = Transition.read(policy)
        if under_way is None or not ask_the_same(under_way.new, self.new):
            raise RolloutStopped(
                "The key's policy was changed by somebody else meanwhile; `confide keys log show` says when."
            )
        if now <= under_way.until:
            return Step("retire", "waiting", {"until": _utc(under_way.until)})
        self._bind(self.new, now)
        return Step("retire", "done")

    def _bind(self, policy: AnyPolicy, now: datetime) -> None:
        change_policy(self.folder, self.store, self.key, policy, self.current.simulated_root, now)


class Machines(Protocol):
    """What can be asked of machines."""

    def verify(self, url: str) -> Verified:
        """Who answers at an address. AttestationError where that is not the new version."""
        ...

    def require_serving(self, verified: Verified) -> None:
        """That it makes answers to questions that are encrypted to its key. ConfideError if not."""
        ...

    def key_id(self, url: str) -> bytes | None:
        """The key that whoever answers there says it has; None where nothing listens any more."""
        ...

    def busy(self, url: str) -> int | None:
        """How many answers are made or waited for, by the metrics there; None where nothing listens any more."""
        ...


class AskedMachines:
    """Machines over the network, with a new connection for each question: a balancer picks anew for each."""

    def __init__(
        self, party: RelyingParty, urls: Sequence[str], ca: Path | None = None, *, insecure_no_tls: bool = False
    ) -> None:
        """party: with the new version's policy. urls: all that are asked for evidence. InsecureConnection."""
        checked = [server_address(url, insecure_no_tls=insecure_no_tls) for url in urls]
        encrypted = next((url for url in checked if urlsplit(url).scheme == "https"), "")
        self._party = party
        self._http = httpx.Client(
            verify=tls_context(encrypted, ca),
            timeout=TIMEOUT,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def verify(self, url: str) -> Verified:
        """See `Machines`."""
        return verify_workload(self._http, url.rstrip("/"), self._party)

    def require_serving(self, verified: Verified) -> None:
        """See `Machines`. Its health is asked for inside the channel, so that it is the appraised one's answer."""
        standing = Standing(lambda _: verified, [verified.url])
        with httpx.Client(transport=EncryptedTransport(self._http, standing), timeout=TIMEOUT) as inside:
            status = inside.get(f"{_INSIDE}/health").status_code
        if status != httpx.codes.OK:
            raise RolloutStopped(
                f"{verified.url} is what the policy asks for, and makes no answers (status {status}); see its log."
            )

    def key_id(self, url: str) -> bytes | None:
        """See `Machines`. Nobody's word will do: nothing is encrypted to it, only handed on."""
        try:
            attested = fetch_attestation(self._http, url.rstrip("/"), secrets.token_hex(NONCE_BYTES))
        except ConnectionLost as error:
            if caused_by(error, ConnectionRefusedError):
                return None
            raise
        return channel_key(attested.statement).id

    def busy(self, url: str) -> int | None:
        """See `Machines`. The address is the operator's own, and nothing is told to it."""
        url = server_address(url, insecure_no_tls=True)
        try:
            with sending(), self._http.stream("GET", f"{url}/metrics") as response:
                return busy_of(read_bounded(response, _MAX_METRICS_BYTES))
        except ConnectionLost as error:
            if caused_by(error, ConnectionRefusedError):
                return None
            raise


def busy_of(metrics: bytes) -> int:
    """Answers made or waited for, by metrics in Prometheus's text format. RolloutStopped where they do not say."""
    found: dict[bytes, float] = {}
    for line in metrics.split(b"\n"):
        name, _, value = line.partition(b" ")
        if name in _BUSY:
            try:
                found[name] = float(value)
            except ValueError:
                found[name] = math.nan
    if len(found) < len(_BUSY) or not all(map(math.isfinite, found.values())):
        raise RolloutStopped(
            "The old version does not say how many answers it is making; give the address of its --metrics-port."
        )
    return sum(map(math.ceil, found.values()))


@dataclass(frozen=True)
class Traffic:
    """Who hands requests on, and how that is changed. public: the address that users have.

    nginx: a folder for what nginx includes: SERVERS in its `upstream` block, REPLICAS in a `map` of the header that
    names a replica. check, reload: commands with their arguments, run one after the other, once these are written.
    """

    public: str
    nginx: Path | None = None
    check: Sequence[str] = ()
    reload: Sequence[str] = ()

    def move(self, new: Mapping[bytes, str], old: Mapping[bytes, str]) -> None:
        """Have questions handed to the new replicas, and requests that name a replica to that one, by keys' ids.

        The receipt of an answer that the old version is still making is with the old version alone. RolloutStopped
        where a command fails; the files are then as they were.
        """
        if not self.reload:
            raise RolloutStopped(
                f"{self.public} is answered by another version still; have it handed to {', '.join(new.values())} and "
                "go on with the same command, or give --reload."
            )
        files = self._files(new, old)
        before = {path: _content(path) for path in files}
        try:
            for path, content in files.items():
                replace_file(path, content)
            for command in filter(None, (self.check, self.reload)):
                _run(command)
        except RolloutStopped:
            for path, old_content in before.items():
                _put_back(path, old_content)
            raise
        except OSError as error:
            raise RolloutStopped(f"{self.nginx} cannot be written ({error.strerror}); check its owner.") from None

    def _files(self, new: Mapping[bytes, str], old: Mapping[bytes, str]) -> dict[Path, bytes]:
        if self.nginx is None:
            return {}
        everyone = {**old, **new}
        return {self.nginx / REPLICAS: replica_lines(everyone), self.nginx / SERVERS: server_lines(new.values())}


def _content(path: Path) -> bytes | None:
    try:
        return read_file(path, _MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RolloutStopped(f"{path} cannot be read ({error.strerror}); give another folder.") from None


def _put_back(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        replace_file(path, content)


def server_lines(urls: Iterable[str]) -> bytes:
    """Lines for nginx's `upstream` block. DeployError for an address that such a line cannot name."""
    return _lines(f"server {_address(url)};" for url in urls)


def replica_lines(replicas: Mapping[bytes, str]) -> bytes:
    """Lines for nginx's `map` from a key's id to where the replica is. DeployError as above."""
    return _lines(f"{key_id.hex()} {_address(url)};" for key_id, url in replicas.items())


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in ("# Written by `confide deploy rollout`.", *lines)).encode()


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or {"https": 443, "http": 80}[parts.scheme]
    except (ValueError, KeyError):
        host, port = "", 0
    if not _HOST.fullmatch(host) or parts.path.strip("/") or parts.query or parts.fragment or parts.username:
        raise DeployError(f"nginx cannot hand requests to {quoted(url)}; give https://HOST:PORT.")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True)
class Rollout:
    """All of it, from the key's policy to the last answer of the old version.

    new, old: where the replicas of the new and the old version are. old_metrics: where those of the old one say how
    much they do. period: how long both are allowed. drain_seconds: how long the old one's answers are waited for.
    """

    policies: KeyPolicies
    machines: Machines
    traffic: Traffic
    new: Sequence[str]
    old: Sequence[str]
    old_metrics: Sequence[str]
    period: timedelta
    drain_seconds: int
    clock: Callable[[], datetime]
    sleep: Callable[[float], None]

    def steps(self) -> Iterator[Step]:
        """Go on with it, step by step; each is over when it is given. What is in the way is raised.

        AttestationRefused where a new replica's evidence does not meet the new policy: nothing is handed to it then.
        """
        yield self.policies.allow(self.period, self.clock())
        replicas = [self.machines.verify(url) for url in self.new]
        for one in replicas:
            self.machines.require_serving(one)
        yield Step("appraise", "done", {"replicas": [_described(one) for one in replicas]})
        yield self._switch({one.key.id: one.url for one in replicas})
        yield self._drain()
        yield self.policies.retire(self.clock())

    def _switch(self, new: Mapping[bytes, str]) -> Step:
        facts = {"public": self.traffic.public}
        if self._has_moved(new):
            return Step("switch", "already", facts)
        old = {key_id: url for url in self.old if (key_id := self.machines.key_id(url)) is not None}
        self.traffic.move(new, old)
        for _ in range(_LOOKS):
            if self._has_moved(new):
                return Step("switch", "done", facts)
            self.sleep(1)
        raise RolloutStopped(
            f"{self.traffic.public} is answered by another version still, although it was told otherwise; look into "
            "the balancer's log."
        )

    def _has_moved(self, new: Mapping[bytes, str]) -> bool:
        """Whether only new replicas answer there, as far as asking a few times for each shows."""
        try:
            return all(self.machines.verify(self.traffic.public).key.id in new for _ in range(2 * len(new) + 2))
        except (AttestationError, *PASSING):
            return False

    def _drain(self) -> Step:
        if not self.old_metrics:
            return Step("drain", "skipped")
        quiet = 0
        for _ in range(self.drain_seconds):
            busy = {url: self.machines.busy(url) for url in self.old_metrics}
            gone = [url for url, count in busy.items() if count is None]
            quiet = quiet + 1 if not any(busy.values()) else 0
            if quiet == _QUIET_LOOKS or len(gone) == len(busy):
                return Step("drain", "done", {"gone": gone})
            self.sleep(1)
        raise RolloutStopped(
            f"The old version still made answers after {self.drain_seconds} seconds; do not stop it yet, and go on "
            "with the same command."
        )


def _run(command: Sequence[str]) -> None:
    """A command of the operator's, without a shell. RolloutStopped where it fails."""
    with tempfile.TemporaryFile() as said:  # a pipe would be kept open by a program that it leaves behind
        try:
            ended = subprocess.run(  # noqa: S603 - the operator's own, and no shell
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=_COMMAND_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            raise RolloutStopped(
                f"{quoted(command[0])} does not start or end ({quoted(str(error))}); traffic is not moved."
            ) from None
        if ended.returncode:
            said.seek(0)
            reason = quoted(said.read(300).decode("utf-8", "replace").strip())
            raise RolloutStopped(f"{quoted(command[0])} failed: {reason}. Mend that, and go on with the same command.")


def _described(one: Verified) -> dict[str, Any]:
    return {
        "url": one.url,
        "family": one.result.family.value,
        "key": one.key.id.hex(),
        "model": one.statement.model_digest,
        "simulated": one.result.simulated,
    }


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
