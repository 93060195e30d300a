"""A session with a model inside a trusted execution environment: verified first, and only then sent anything."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

import httpx

from confide.attest.configuration import Configuration
from confide.attest.policy import AnyPolicy
from confide.attest.result import AttestationResult
from confide.channel.encryption import CACHE_SALT, COLLECTION_KEY
from confide.client.answers import first_choice, text_of, typed_errors
from confide.client.attested import verify_workload
from confide.client.collections import OwnCollection
from confide.client.graph import Coordinated, GraphVerdict, relying_on, trust_of
from confide.client.hop import LONG_TIMEOUT, TIMEOUT, server_address, tls_context
from confide.client.ra_tls import AsyncAttestedTlsTransport, AttestedTlsTransport, unauthenticated_context
from confide.client.receipts import AsyncReceiptedTransport, ReceiptedTransport, Receipts, save_receipt
from confide.client.relying_party import RelyingParty, Verified
from confide.client.session import Pieces, Session
from confide.client.standing import Standing
from confide.client.transport import AsyncEncryptedTransport, EncryptedTransport
from confide.errors import (
    InsecureConnection,
    ProtocolError,
    WrongMode,
)
from confide.packages.sealed.key import ModelKey
from confide.receipts.verify import ReceiptResult
from confide.trust.enclave import ENCRYPTED, TLS, enclave_trust, replicas_trust
from confide.trust.statement import TrustStatement

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

_INSIDE: Final = "http://workload.invalid"
"""Stands for the workload above the encrypted channel; the name is never looked up."""
_NO_API_KEY: Final = "none"


class EnclaveSession(Session):
    """A session whose requests are encrypted to a key that the user's policy has accepted.

    Opening one verifies the workload and raises AttestationRefused where the policy does not accept it. A workload that
    says that it has another key, by a restart or because a new version took over, is verified anew under the same
    policy, and asked then; where that is refused, everything is refused with KeyChanged until `verify` succeeds. Where
    the workload's statement promises receipts, the end of an answer comes once its receipt holds: ReceiptMissing,
    MalformedReceipt or ReceiptRefused where it does not. To one key of a workload without replicas nothing is sent a
    second time unasked, and nowhere once an answer has begun: the clients of the OpenAI SDK are made with
    max_retries=0, since a cut or changed answer is something to know about, and errors of the channel come through them
    as they are.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        policy: AnyPolicy | Path | str | None = None,
        simulated_root: Path | str | None = None,
        attestation_keys: Iterable[str] = (),
        ca: Path | str | None = None,
        ra_tls: bool = False,
        insecure_no_tls: bool = False,
        offline: bool = False,
        replicas: int = 1,
        licence: str = "",
        graph: str = "",
        coordinator: str = "",
        promise: AnyPolicy | Path | str | None = None,
    ) -> None:
        """url: where the workload or its gateway is, or several addresses of replicas, of which the first that holds is
        asked first. policy, simulated_root, attestation_keys, offline: see RelyingParty.

        ca: PEM file of the authorities to trust for TLS that ends at a gateway; the system's without. ra_tls: TLS ends
        inside the workload, and its certificate's evidence takes the place of an authority; requests then go through
        that alone, where they are otherwise encrypted to the workload's key whatever is in between.
        insecure_no_tls: allow http beyond this machine, where requests are encrypted as everywhere. replicas: how many
        workloads a balancer may hand requests to at each address; at most 16 in all (ValueError). licence: the key of a
        licence, for a workload whose users have them; it goes where prompts go, and only there.

        graph: the id of a graph of services, of which the one here is the entry; then all of them are verified, and
        each has to satisfy the policy as well as its owners'. coordinator: of a graph that is not shown, the address of
        what vouches for it, which the policy is then for. promise: what it has to promise; without, what it does is
        taken, and `trust` says it.

        Each replica is verified under the policy before anything is encrypted to it. With more than one, a new key does
        not stop the session: whoever has it is verified. A request that came to a replica that cannot read it, or that
        nobody began to answer, is made anew for one that was verified; once an answer has begun it never is.
        """
        given = [url] if isinstance(url, str) else list(url)
        self.urls = tuple(dict.fromkeys(server_address(one, insecure_no_tls=insecure_no_tls) for one in given))
        encrypted = [one for one in self.urls if urlsplit(one).scheme == "https"]
        if ra_tls and (replicas != 1 or len(self.urls) != 1):
            raise WrongMode(
                "RA-TLS ends at one workload: behind a balancer the next connection, for a receipt as well, may end at "
                "another. Give one address without replicas, or connect without ra_tls, which encrypts to each replica."
            )
        if ra_tls and not encrypted:
            raise InsecureConnection(
                f"{self.urls[0]} is not an https address, and RA-TLS is TLS; write https://host:port."
            )
        if graph and (len(self.urls) != 1 or replicas != 1 or ra_tls):
            raise WrongMode("A graph has one entry, without replicas and asked without ra_tls; leave the others out.")
        if (coordinator or promise is not None) and not graph:
            raise WrongMode("A coordinator and its promise are a graph's; give graph as well, or leave them out.")
        if ra_tls and ca:
            raise WrongMode("RA-TLS trusts evidence and no authority; leave ca out, or connect without ra_tls.")
        self._party = RelyingParty.configure(policy, simulated_root, attestation_keys, offline=offline)
        self._whole = (
            relying_on(graph, self._party, coordinator, promise, insecure_no_tls=insecure_no_tls) if graph else None
        )
        self._verdict: GraphVerdict | Coordinated | None = None
        self._ra_tls = ra_tls
        self._api_key = licence or _NO_API_KEY
        self._tls = unauthenticated_context() if ra_tls else tls_context((encrypted or [""])[0], ca)
        self._receipts = Receipts(self._base_url)
        self._salted = {CACHE_SALT: secrets.token_hex(32)}
        self._http = httpx.Client(verify=self._tls, timeout=TIMEOUT, trust_env=False)
        try:
            self._standing = Standing(self._verified, self.urls, replicas)
        except BaseException:
            self._http.close()
            raise

    def _verified(self, url: str) -> Verified:
        """Whoever answers there, and with it the graph, if it is the entry of one."""
        if self._whole is None:
            return verify_workload(self._http, url, self._party)
        verdict = self._whole.verify(self._http, url)
        entry = verdict.entry
        self._verdict = verdict
        return entry

    def __repr__(self) -> str:
        return f"EnclaveSession({', '.join(map(repr, self.urls))}, {self.result.family.value})"

    @property
    def result(self) -> AttestationResult:
        """Every check of the last verification that held."""
        return self._standing.last.result

    @property
    def model_digest(self) -> str:
        """SHA-256 of the model, as the verified statement names it; empty where it names none."""
        return self._standing.last.statement.model_digest

    @property
    def configuration(self) -> Configuration | None:
        """What runs, as the verified statement says it; None where it does not."""
        return self._standing.last.statement.configuration

    @property
    def trust(self) -> TrustStatement:
        """Who can see prompt, weights and output, under which assumption."""
        if self._verdict is not None:
            return trust_of(self._verdict)
        channel = TLS if self._ra_tls else ENCRYPTED
        met = self._standing.replicas or (self._standing.last,)
        each = [enclave_trust(one.result, channel, one.statement.configuration) for one in met]
        return replicas_trust(each, self._standing.limit)

    @property
    def graph(self) -> GraphVerdict | Coordinated | None:
        """What was verified of the graph whose entry this is; None where no graph was asked for."""
        return self._verdict

    @property
    def replicas(self) -> tuple[Verified, ...]:
        """The workloads that are relied on, as far as they were met, each verified by itself; the last answered."""
        return self._standing.replicas

    @property
    def most_replicas(self) -> int:
        """How many there may be, at all addresses."""
        return self._standing.limit

    def verify(self) -> AttestationResult:
        """Verify the workload again, with a new nonce, and rely on the key that it has now. So too each replica.

        AttestationRefused where it is not trusted any more; the session then refuses everything.
        """
        return self._standing.renew().result

    @cached_property
    def model(self) -> str:
        """The first model that the workload serves, by the name that its API takes."""
        return self.models[0]

    @property
    def models(self) -> list[str]:
        """All that the workload serves, asked for now."""
        with typed_errors():
            served = self.openai.models.list().data
            if not served:
                raise ProtocolError("The workload serves no model; ask its operator.")
            return [text_of(model.id) for model in served]

    @cached_property
    def openai(self) -> "OpenAI":
        """The OpenAI SDK's client. Its base_url is inside the channel."""
        return self._sdk(self._salted)

    def _sdk(self, headers: Mapping[str, str]) -> "OpenAI":
        """headers: of every request, below the SDK, which may be told to log what it sends."""
        from openai import OpenAI

        http: Any = httpx.Client(transport=self._inside, timeout=LONG_TIMEOUT, headers=headers)
        # The SDK types httpx's successor, and takes both.
        return OpenAI(api_key=self._api_key, base_url=self._base_url, http_client=http, max_retries=0)

    @cached_property
    def _inside(self) -> ReceiptedTransport:
        """What is asked with this ends inside the workload."""
        transport = (
            AttestedTlsTransport(self._party, self._standing)
            if self._ra_tls
            else EncryptedTransport(self._http, self._standing)
        )
        return ReceiptedTransport(transport, self._receipts)

    def collection(self, key: ModelKey | Path | str) -> OwnCollection:
        """Documents of this user's own at the service, under a key, or a file of one, that they alone have.

        ModelKeyError for a file that is none. Whoever has the key can read them; see `confide collection create`.
        """
        key = key if isinstance(key, ModelKey) else ModelKey.read(Path(key))
        client = self._sdk({**self._salted, COLLECTION_KEY: key.raw.hex()})
        return OwnCollection(key, client, self.save_receipt)

    def receipt(self) -> ReceiptResult:
        """Every check of the workload's receipt for the last answer, of either client, made as that answer ended.

        UnknownReceipt before there is an answer, or where one was stopped. What was wrong with a receipt was raised
        in place of the end of its answer, and is raised again.
        """
        return self._receipts.result()

    def save_receipt(self, folder: Path | str) -> ReceiptResult:
        """The same, kept in a folder with all that verifying it offline takes: `confide receipt verify` says how.

        receipt.json and bundle.json hold digests; request and response are the question and the answer in the clear.
        An answer of more than 4 MiB is left out. FileExistsError where there are such files already.
        """
        result, exchange = self._receipts.result(), self._receipts.last
        if exchange is not None:
            save_receipt(Path(folder), exchange, result, self._party.freeze(exchange.verified))
        return result

    @cached_property
    def async_openai(self) -> "AsyncOpenAI":
        """The same for asyncio; close it with `aclose`, or use the session in an `async with` statement."""
        from openai import AsyncOpenAI

        transport = (
            AsyncAttestedTlsTransport(self._party, self._standing)
            if self._ra_tls
            else AsyncEncryptedTransport(self._async_http, self._standing)
        )
        receipted = AsyncReceiptedTransport(transport, self._receipts)
        http: Any = httpx.AsyncClient(transport=receipted, timeout=LONG_TIMEOUT, headers=self._salted)
        return AsyncOpenAI(api_key=self._api_key, base_url=self._base_url, http_client=http, max_retries=0)

    @cached_property
    def _async_http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(verify=self._tls, timeout=TIMEOUT, trust_env=False)

    @property
    def _base_url(self) -> str:
        return f"{self.urls[0] if self._ra_tls else _INSIDE}/v1"

    def generate(self, text: str, **options: Any) -> str:
        """How the text goes on. options: those of the OpenAI API's completions, such as max_tokens or temperature."""
        with typed_errors():
            made = self.openai.completions.create(**{"model": self.model, **options, "prompt": text})
            return text_of(first_choice(made).text)

    def _answer(self, messages: list[dict[str, str]], options: dict[str, Any]) -> str:
        with typed_errors():
            made = self.openai.chat.completions.create(**{"model": self.model, **options, "messages": messages})
            return text_of(first_choice(made).message.content or "")

    def _stream(self, messages: list[dict[str, str]], options: dict[str, Any]) -> Pieces:
        with typed_errors():
            request = {"model": self.model, **options, "messages": messages, "stream": True}
            with self.openai.chat.completions.create(**request) as chunks:
                yield from (
                    text_of(text) for chunk in chunks if chunk.choices and (text := chunk.choices[0].delta.content)
                )

    def close(self) -> None:
        """Close the connections of everything but `async_openai`."""
        if "_inside" in vars(self):
            self._inside.close()
        self._http.close()

    async def aclose(self) -> None:
        """Close all connections."""
        self.close()
        if "async_openai" in vars(self):
            await self.async_openai.close()
        if "_async_http" in vars(self):
            await self._async_http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
