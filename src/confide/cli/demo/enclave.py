"""`confide demo enclave`: from a sealed model to a verified answer, and three attempts to cheat, in a simulated TEE."""

import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from confide.attest.check import Outcome
from confide.cli import output
from confide.cli.demo.process import serving
from confide.cli.demo.tampering import damage_evidence, flip_byte, tampering_relay
from confide.cli.keys import PASSPHRASE_VARIABLE
from confide.cli.options import Json
from confide.cli.tee import WARNING
from confide.errors import AttestationRefused, ChannelBroken, ConfideError, InvalidPackage

if TYPE_CHECKING:
    from confide.attest.policy import SimulatedPolicy
    from confide.client.enclave import EnclaveSession
    from confide.packages.sealed.key import ModelKey

PROMPT = "The old king called his three sons and said,"
ANSWER_TOKENS = 40
ROUNDS = 30
_MARKS: Final = {Outcome.PASS: ("✓ ", "green"), Outcome.FAIL: ("✗ ", "red"), Outcome.SKIPPED: ("– ", "yellow")}


@dataclass(frozen=True)
class EnclaveDemoResult:
    """What the demo found. overhead_ms: what verification's channel adds to a request that no model works on."""

    verified: bool
    tee: str
    model_digest: str
    text: str
    tampering_refused: int
    overhead_ms: float


def command(
    prompt: Annotated[str, typer.Option(help="The text to go on from.")] = PROMPT,
    json: Json = False,
) -> None:
    """Seal a model, release its key to a simulated TEE, verify, ask, and watch three kinds of tampering be refused."""
    with tempfile.TemporaryDirectory(prefix="confide-demo-") as folder:
        result = EnclaveDemo(Path(folder), show=not json).run(prompt)
    if json:
        output.result(asdict(result))


class EnclaveDemo:
    """The demo in a folder of its own. show: whether it says what it does."""

    def __init__(self, folder: Path, *, show: bool) -> None:
        self._folder = folder
        self._prompt = PROMPT
        self._show = show
        self._package = folder / "package"

    def run(self, prompt: str) -> EnclaveDemoResult:
        """From the owner to the user, and those who cheat."""
        self._prompt = prompt
        with self.serving() as (server, key):
            self._say(
                f"Evidence shown, key released, model opened in memory: {server['model']} runs on {server['engine']}.\n"
                f"The owner's log, hash-chained and whole: {self._log_entries()} release."
            )
            return self._use(server["url"], key)

    @contextmanager
    def serving(self) -> "Iterator[tuple[dict[str, Any], ModelKey]]":
        """A sealed model that a simulated TEE serves: what its server announces, and the model's key."""
        from confide.attest.policy import SimulatedPolicy
        from confide.attest.simulated import SimulatedTee

        output.quiet_transformers()
        self._title("1  The owner: a model sealed, and its key kept")
        key, digest = self._seal()
        self._title("2  The machine: a trusted execution environment")
        SimulatedTee.create(self._folder / "tee")
        if self._show:
            output.console.print(f"[bold red]{WARNING}[/]")
        environment = self._keep(key, digest, SimulatedPolicy())
        keys = ("keys", "serve", "--folder", str(self._folder / "keys"), "--port", "0", "--offline")
        with serving(*keys, environment=environment) as broker:
            simulated = ("--tee", "simulated", "--simulated-tee", str(self._folder / "tee"))
            released = ("--keys", broker["url"], "--port", "0")
            with serving("serve", str(self._package), *simulated, *released, environment=environment) as server:
                yield server, key

    @property
    def root(self) -> Path:
        """The simulated root's certificate."""
        return self._folder / "tee" / "root.pem"

    # -- the owner ---------------------------------------------------------------------------------------------

    def _seal(self) -> "tuple[ModelKey, str]":
        from confide.enclave.boot import examine
        from confide.packages.owner import OwnerKey
        from confide.packages.sealed.contents import contents_of
        from confide.packages.sealed.key import ModelKey
        from confide.packages.sealed.write import seal_model

        key = ModelKey.generate()
        manifest = seal_model(contents_of("demo"), self._package, key=key, owner=OwnerKey.generate(), examine=examine)
        self._say(
            f"{len(manifest.files)} files, {output.megabytes(manifest.size)}, encrypted and signed. Model digest "
            f"[bold]{manifest.model_digest[:16]}[/]…"
        )
        return key, manifest.model_digest

    def _keep(self, key: "ModelKey", digest: str, policy: "SimulatedPolicy") -> dict[str, str]:
        """Bind the key to the policy; returns the environment that the broker and the server run in."""
        from datetime import UTC, datetime

        from confide.broker.store import Conditions, KeyStore

        passphrase = secrets.token_hex(16)
        root = self.root.read_bytes()
        store = KeyStore.create(self._folder / "keys", passphrase)
        store.add(key, Conditions(digest, policy, root), datetime.now(UTC))
        return {PASSPHRASE_VARIABLE: passphrase, "CONFIDE_HOME": str(self._folder / "home")}

    def _log_entries(self) -> int:
        from confide.broker.log import LOG_NAME, verify

        return verify(self._folder / "keys" / LOG_NAME).entries

    # -- the user ----------------------------------------------------------------------------------------------

    def _use(self, url: str, key: "ModelKey") -> EnclaveDemoResult:
        from confide.attest.policy import SimulatedPolicy
        from confide.client.enclave import EnclaveSession

        self._title("3  The user: verify first, then ask")

        def opened(address: str) -> EnclaveSession:
            return EnclaveSession(address, policy=SimulatedPolicy(), simulated_root=self.root)

        with opened(url) as session:
            self._checks(session)
            text = session.generate(self._prompt, max_tokens=ANSWER_TOKENS, temperature=0)
            self._say(f"\n{self._prompt}[bold]{text}[/]\n")
            overhead = self._overhead(session, url)
            self._say(f"Encrypting a request and its answer to the verified key costs {overhead:.1f} ms here.")
            result = EnclaveDemoResult(
                verified=session.result.trusted,
                tee=f"{session.result.family} (simulated)",
                model_digest=session.model_digest,
                text=text,
                tampering_refused=self._tamper(url, opened, key),
                overhead_ms=overhead,
            )
        return result

    def _checks(self, session: "EnclaveSession") -> None:
        if not self._show:
            return
        table = Table("check", "expected", "seen", show_edge=False, pad_edge=False)
        for check in session.result.checks:
            mark = Text(*_MARKS[check.outcome])
            table.add_row(mark + Text(check.code), Text(check.expected[:44]), Text(check.seen[:44]))
        output.console.print(table)

    def _overhead(self, session: "EnclaveSession", url: str) -> float:
        """Median milliseconds of an encrypted request less those of a plain one; neither needs the model."""
        import httpx

        with httpx.Client(trust_env=False) as plain:
            pairs = [
                (_milliseconds(session.openai.models.list), _milliseconds(lambda: plain.get(f"{url}/health")))
                for _ in range(ROUNDS)
            ]
        return statistics.median(sealed for sealed, _ in pairs) - statistics.median(clear for _, clear in pairs)

    # -- whoever wants to cheat --------------------------------------------------------------------------------

    def _tamper(self, url: str, opened: "Callable[[str], EnclaveSession]", key: "ModelKey") -> int:
        self._title("4  One byte changed, three times")
        with tampering_relay(url, {"/attestation": damage_evidence}) as relay:
            evidence = self._refused("the evidence", AttestationRefused, lambda: opened(relay))
        with tampering_relay(url, {"/encrypted": lambda answer: flip_byte(answer, len(answer) // 2)}) as relay:
            with opened(relay) as session:
                answer = self._refused("an answer", ChannelBroken, lambda: session.generate(self._prompt, max_tokens=4))
        package = self._refused("the package", InvalidPackage, lambda: self._open_damaged(key))
        return evidence + answer + package

    def _open_damaged(self, key: "ModelKey") -> None:
        """What the server would do with a copy of the package in which one byte of the weights is another."""
        from confide.packages.sealed.load import load_model
        from confide.packages.sealed.package import SealedPackage

        damaged = Path(shutil.copytree(self._package, self._folder / "damaged"))
        weights = max(damaged.iterdir(), key=lambda path: path.stat().st_size)
        weights.write_bytes(flip_byte(weights.read_bytes(), weights.stat().st_size // 2))
        load_model(SealedPackage.open(damaged).unlock(key))

    def _refused(self, what: str, expected: type[ConfideError], attempt: Callable[[], object]) -> bool:
        """Whether the attempt ended in the error that it should end in."""
        try:
            attempt()
        except expected as error:
            self._say(f"[green]refused[/]  {what}: [dim]{error.code}[/]")
            return True
        self._say(f"[bold red]NOT refused[/]  {what}")
        return False

    # -- showing -----------------------------------------------------------------------------------------------

    def _title(self, text: str) -> None:
        if self._show:
            output.console.print(f"\n[bold cyan]{text}[/]")

    def _say(self, text: str) -> None:
        if self._show:
            output.console.print(text)


def _milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3
