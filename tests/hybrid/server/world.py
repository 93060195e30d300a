"""A tiny model that is nothing but layer groups, a server for it, and a client that speaks the protocol by hand."""

import asyncio
import queue
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from websockets.sync.client import connect

from confide.errors import LedgerUnavailable
from confide.hybrid import wire
from confide.hybrid.server.limits import Limits
from confide.hybrid.server.server import HostedModel, LayerServer
from confide.hybrid.server.service import LayerService, Observer
from confide.ledger.address import Place
from confide.ledger.ledger import Ledger, end_owners
from confide.ledger.opening import open_store
from confide.ledger.sqlite import SqliteStore
from confide.ledger.store import OWNER_SECONDS, Store
from confide.packages.entropy import row_entropy
from confide.packages.manifest import FORMAT, Group, Layer, Manifest, ModelDigest, PackageKind
from confide.packages.server_package import StoredGroup, row_norms
from confide.packages.signing import SignedManifest, sign_manifest
from confide.rlwe.hint import HintMaker
from confide.rlwe.open_weights import open_pads
from confide.rlwe.pads import mask, unmask
from confide.rlwe.parameters import Parameters, Profile
from confide.rlwe.public import PublicSeed
from confide.rlwe.tokens import TokenSecrets
from owners import OWNER

SHAPES = [(12, 8), (5, 12), (7, 20)]
"""(rows, columns) of the groups."""


@dataclass(frozen=True)
class Model:
    """What the owner makes. hints: int8 (rows, 5, N) of each group; with open weights there are none."""

    signed: SignedManifest
    stored: list[StoredGroup]
    hints: list[NDArray[np.int8]]
    public: PublicSeed
    parameters: list[Parameters]


@cache
def model(profile: Profile = Profile.PRIVATE_WEIGHTS) -> Model:
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator) for shape in SHAPES]
    digest, groups = ModelDigest(), []
    for index, matrix in enumerate(weights):
        rows, columns = matrix.shape
        digest.add(f"g{index}.a", rows, columns, memoryview(matrix.numpy()))
        derived = Parameters.derive(profile, row_norms(matrix), rows=rows, columns=columns)
        entropy = row_entropy(matrix.numpy())
        layers = (Layer(f"g{index}.a", rows),)
        groups.append(Group(f"g{index}", layers, columns, derived.activation_bits, derived.plaintext_bits, entropy))
    manifest = Manifest(FORMAT, PackageKind.SERVER, profile, "small", digest.hexdigest(), tuple(groups), {})
    signed = SignedManifest(manifest, sign_manifest(b"in memory", manifest, OWNER))
    public = PublicSeed(bytes.fromhex(digest.hexdigest()), 0)
    parameters = [group.parameters(profile) for group in groups]
    if profile is Profile.OPEN_WEIGHTS:
        return Model(signed, [StoredGroup(matrix, None) for matrix in weights], [], public, parameters)
    makers = [HintMaker(matrix, public, bytes(32), index) for index, matrix in enumerate(weights)]
    hints = [np.concatenate([tile.hint for tile in maker.rows()]) for maker in makers]
    stored = [StoredGroup(matrix, torch.from_numpy(maker.u())) for matrix, maker in zip(weights, makers, strict=True)]
    return Model(signed, stored, hints, public, parameters)


def service(
    state: Place,
    observer: Observer | None = None,
    profile: Profile = Profile.PRIVATE_WEIGHTS,
    *,
    insecure_no_licences: bool = True,
) -> LayerService:
    made = model(profile)
    return LayerService(made.signed, made.stored, Ledger(state), observer, insecure_no_licences=insecure_no_licences)


def store_classes() -> list[type[Store]]:
    """The two kinds of database, as far as their libraries are installed."""
    classes: list[type[Store]] = [SqliteStore]
    with suppress(ImportError):
        from confide.ledger.postgres import PostgresStore

        classes.append(PostgresStore)
    return classes


def break_transactions(patch: pytest.MonkeyPatch, moment: str) -> None:
    """Have transactions fail: before they begin, before they are committed, or when they are and nobody hears of it."""
    for store in store_classes():
        patch.setattr(store, "transaction", _broken(store.transaction, moment))


def _broken(transaction: Callable[..., AbstractContextManager[None]], moment: str) -> Callable[..., object]:
    @contextmanager
    def broken(store: Store, licences: object = None) -> Iterator[None]:
        if moment != "before":
            with transaction(store, licences):
                yield
                if moment == "rolled back":
                    raise LedgerUnavailable("The cable was cut.")
        raise LedgerUnavailable("The cable was cut.")

    return broken


def kill(ledger: Ledger) -> None:
    """What SIGKILL leaves: no row more is written, and the files are closed."""
    with pytest.MonkeyPatch.context() as patch, suppress(LedgerUnavailable):
        break_transactions(patch, "before")
        ledger.close()


def outlast_the_dead(place: Place) -> None:
    """Let so much time pass that servers are taken for dead which have not been heard of, and have another end them."""
    with closing(open_store(place)) as store, store.transaction():
        for owner in store.rows("owners"):
            store.put("owners", **(owner | {"heard": owner["heard"] - 2 * OWNER_SECONDS}))
        end_owners(store, store.now() - OWNER_SECONDS)


# -- the network -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A server that runs in a thread. stop: what SIGTERM does; it goes on draining after that."""

    url: str
    server: LayerServer
    stop: Callable[[], object]

    @property
    def model(self) -> HostedModel:
        """The first one, which most tests have alone."""
        return next(iter(self.server.models.values()))


@contextmanager
def serving(
    service: LayerService | dict[str, LayerService],
    limits: Limits | None = None,
    tls: ssl.SSLContext | None = None,
    metrics_port: int | None = None,
) -> Iterator[Served]:
    """Serve in a thread."""
    ready: queue.Queue[Served | BaseException] = queue.Queue()
    stopping: list[Callable[[], object]] = []

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        stopping.append(lambda: loop.call_soon_threadsafe(stop.set))
        try:
            server = LayerServer(service if isinstance(service, dict) else {"small": service}, limits)
            async with server.listening("127.0.0.1", 0, tls=tls, metrics_port=metrics_port) as url:
                ready.put(Served(url, server, stopping[0]))
                await stop.wait()
        except BaseException as error:
            ready.put(error)
            raise

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        served = ready.get(timeout=900)
        if isinstance(served, BaseException):
            raise served
        yield served
    finally:
        with suppress(RuntimeError):  # stopped already
            stopping[0]()
        thread.join()


class Tokens:
    """Some tokens of a client: what it asks for and what it makes of the answers."""

    def __init__(self, tokens: int, profile: Profile = Profile.PRIVATE_WEIGHTS, seed: int = 0) -> None:
        self.count = tokens
        self._model = model(profile)
        self._profile = profile
        self._seed = seed
        self._values: dict[int, NDArray[np.int32]] = {}
        self.x: dict[int, NDArray[np.int32]] = {}
        self._secrets = TokenSecrets(self._model.public, tokens) if profile is Profile.PRIVATE_WEIGHTS else None
        self.p0 = b"" if self._secrets is None else self._secrets.p0.tobytes()

    def planes(self, group: int) -> NDArray[np.int8]:
        """d of all tokens: int8 (planes, tokens, columns)."""
        parameters = self._model.parameters[group]
        random = np.random.default_rng(self._seed + 1000 * group)
        bound = parameters.max_activation
        self.x[group] = random.integers(-bound, bound + 1, (self.count, parameters.columns), dtype=np.int32)
        if self._secrets is None:
            pads, self._values[group] = open_pads(self._model.stored[group].weights, self.count)
        else:
            pads = self._secrets.pads(group, parameters)
            self._values[group] = self._secrets.values(self._model.hints[group], parameters)
        return mask(self.x[group], pads, parameters)

    def ahead(self, block: int) -> wire.Ahead:
        return wire.Ahead(block, memoryview(self.p0))

    def request(self, group: int, *, block: int = 0, with_p0: bool = True) -> wire.Online:
        """All tokens' request of one group."""
        p0 = memoryview(self.p0 if with_p0 else b"")
        return wire.Online(group, block, 0, self.count, wire.payload(self.planes(group)), p0)

    def product(self, group: int, answer: wire.Answer) -> NDArray[np.int32]:
        values = np.frombuffer(answer.values, np.int32).reshape(self.count, -1)
        return unmask(values.copy(), self._values[group], self._model.parameters[group])

    def exact(self, group: int) -> NDArray[np.int32]:
        weights: Tensor = self._model.stored[group].weights
        return (self.x[group].astype(np.int64) @ weights.numpy().T.astype(np.int64)).astype(np.int32)

    def require_exact(self, group: int, answer: wire.FromServer) -> None:
        assert isinstance(answer, wire.Answer), answer
        assert np.array_equal(self.product(group, answer), self.exact(group))


def hello(licence: str = "", profile: Profile = Profile.PRIVATE_WEIGHTS) -> wire.Hello:
    signed = model(profile).signed
    return wire.Hello(
        wire.PROTOCOL_VERSION, wire.SCHEME, signed.release.model_digest, signed.release.table_digest, licence
    )


class Client:
    """A connection. Sends what it is told to."""

    def __init__(self, url: str, licence: str = "", *, greet: bool = True, **options: object) -> None:
        self.socket = connect(f"{url}{wire.PATH}", compression=None, max_size=None, legacy=True, **options)  # type: ignore[arg-type]
        self.welcome: wire.Welcome | None = None
        if greet:
            self.send(hello(licence))
            answer = self.receive()
            if isinstance(answer, wire.Failure):
                wire.raise_failure(answer)
            assert isinstance(answer, wire.Welcome)
            self.welcome = answer

    def send(self, message: wire.FromClient) -> None:
        self.socket.send(wire.encode(message))

    def receive(self, timeout: float = 20) -> wire.FromServer:
        frame = self.socket.recv(timeout)
        assert isinstance(frame, bytes)
        return wire.decode_from_server(frame)

    def ask(self, message: wire.FromClient) -> wire.FromServer:
        self.send(message)
        return self.receive()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
