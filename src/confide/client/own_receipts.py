"""Receipts that this client makes about answers of the hybrid mode, in a chain: see `confide.receipts.client`."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from confide.attest.configuration import SamplingDefaults
from confide.audit.log import note
from confide.disk.files import create_file
from confide.hybrid.wire import PROTOCOL_VERSION, SCHEME
from confide.ledger.keys import licence_digest
from confide.receipts.client import (
    CLIENT_VERSION,
    MAX_SERVER,
    STATEMENT,
    ClientReceipt,
    ClientReceiptFields,
    Generation,
    Link,
    ModelUsed,
    ProtocolUsed,
    SamplingUsed,
)
from confide.receipts.client_key import ClientKey
from confide.receipts.documents import digest_of
from confide.receipts.events import sampling_event
from confide.rlwe.freivalds import PRIME_BITS
from confide.rlwe.parameters import ANSWER_BITS, MODULUS_BITS, RING_DEGREE, Profile

if TYPE_CHECKING:
    from confide.hybrid.client.generation import Generated
    from confide.hybrid.model import HybridModel

_ID_BYTES: Final = 24
_SESSION_BYTES: Final = 16
_STOCK: Final = MappingProxyType({"temperature": 1.0, "top_p": 1.0, "top_k": 50})


def stock_sampling(hybrid: "HybridModel", *, greedy: bool, max_tokens: int) -> SamplingDefaults:
    """How transformers' `generate` samples where it is not told: as the model's configuration says, or by itself."""
    stock = hybrid.model.generation_config

    def number(name: str) -> Any:
        own = getattr(stock, name, None)
        return _STOCK[name] if own is None else own

    temperature = 0.0 if greedy else number("temperature")
    return SamplingDefaults(temperature, number("top_p"), number("top_k"), max_tokens)


@dataclass(frozen=True)
class Question:
    """endpoint: what was asked. request_hash: the digest of the question's bytes. sampling: by its numbers."""

    endpoint: str
    request_hash: str
    sampling: SamplingUsed | None


class OwnReceipts:
    """The receipts of one open shell. name: of the model, as the client calls it. Safe for several threads.

    defaults: how answers are sampled where a request does not say.
    """

    def __init__(self, key: ClientKey, hybrid: "HybridModel", name: str, defaults: SamplingDefaults) -> None:
        self._key = key
        self._defaults = defaults
        release, licence, groups = hybrid.release, hybrid.dials[0].licence, hybrid.product.groups
        self._server = ", ".join(dial.url for dial in hybrid.dials)[:MAX_SERVER]
        self._licence = f"sha256:{licence_digest(licence).hex()}" if licence else None
        self._model = ModelUsed(name[:256] or "model", release.model_digest.hex(), str(release.owner))
        self._discloses = release.profile is Profile.PRIVATE_WEIGHTS
        self._protocol = ProtocolUsed(
            SCHEME,
            PROTOCOL_VERSION,
            release.profile,
            release.table_digest.hex(),
            len(groups),
            RING_DEGREE,
            MODULUS_BITS,
            ANSWER_BITS,
            PRIME_BITS,
        )
        self._lock = Lock()
        self._session = secrets.token_hex(_SESSION_BYTES)
        self._sequence = 0
        self._previous: str | None = None

    @property
    def public_key(self) -> str:
        """Of the key that signs them, in hexadecimal."""
        return self._key.public

    def question(self, endpoint: str, request: bytes) -> Question:
        """What a receipt will say of a question."""
        sampled = sampling_event(request, self._defaults)
        used = SamplingUsed(sampled["digest"], self._defaults) if sampled else None
        return Question(endpoint, digest_of(request), used)

    def make(
        self, question: Question, returned: str, made: "Sequence[Generated]", receipt_id: str = ""
    ) -> ClientReceipt:
        """For one answer. returned: its digest. made: every run of the model for it. receipt_id: fresh without."""
        down = sum(one.traffic.bytes_down for one in made)
        with self._lock:
            fields = ClientReceiptFields(
                api_version=CLIENT_VERSION,
                statement=STATEMENT,
                receipt_id=receipt_id or secrets.token_hex(_ID_BYTES),
                made_at=int(time.time()),
                endpoint=question.endpoint,
                server=self._server,
                model=self._model,
                protocol=self._protocol,
                licence=self._licence,
                generations=tuple(map(_generation, made)),
                disclosed_bits=8 * down if self._discloses else 0,
                sampling=question.sampling,
                request_hash=question.request_hash,
                response_hash=returned,
                chain=Link(self._session, self._sequence + 1, self._previous),
                public_key=self._key.public,
            )
            receipt = ClientReceipt.sign(self._key, fields)
            note("receipt", mode="hybrid", made_by="client", peer=self._server,
                 model=self._model.digest, receipt=receipt.digest)  # fmt: skip
            self._sequence, self._previous = fields.chain.sequence, receipt.digest
        return receipt


def _generation(made: "Generated") -> Generation:
    lengths, traffic = made.lengths, made.traffic
    return Generation(
        lengths.prompt,
        lengths.visible_prompt,
        lengths.answer,
        lengths.visible_answer,
        traffic.bytes_up,
        traffic.bytes_down,
        traffic.round_trips,
        traffic.answers_right,
    )


def save_own_receipt(folder: Path, receipt: ClientReceipt, request: bytes, response: bytes) -> None:
    """Keep a receipt for whoever audits it later, each file for its owner only. FileExistsError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    create_file(folder / "receipt.json", receipt.write())
    create_file(folder / "request", request)
    create_file(folder / "response", response)
