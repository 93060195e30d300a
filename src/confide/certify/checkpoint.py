"""What a killed training leaves, and how another process of the same run takes it up.

It is one file under the adapter's key, and it names its run. But that key's owner could make such a file too, of
weights from anywhere. So each process of a run has evidence for a key of its own, signs what it leaves with that, and
goes on only from what such a key signed. All that evidence stands in the certificate, and whoever verifies it holds
each process to the same policy.
"""

import hashlib
import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from confide.attest.certificates import signed_by
from confide.attest.configuration import Count
from confide.attest.training import MAX_EARLIER, EarlierPart, TrainingRun
from confide.attest.wire import Attested, Record
from confide.disk.files import FileTooLarge, read_bounded, replace_file
from confide.errors import TrainingFailed
from confide.packages.sealed.key import ModelKey

MAX_CHECKPOINT_BYTES: Final = (1 << 31) - (1 << 20)
"""AES-GCM of one message, as the library takes it."""
_MAGIC: Final = b"confide checkpoint 1\0"
_SALT_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_NONCE: Final = bytes(12)
"""The key is of this file alone: its salt is fresh."""
_NAME: Final = "checkpoint"
_ANEW: Final = "remove it, and the training starts anew"


class Left(Record, frozen=True):
    """What a process left. parts: those before it, and itself. state: of `lora.Training` after so many steps."""

    parts: Annotated[tuple[EarlierPart, ...], msgspec.Meta(min_length=1, max_length=MAX_EARLIER + 1)]
    steps: Count
    state: bytes


@dataclass(frozen=True)
class Checkpoints:
    """Of one run, in one file. key: the adapter's."""

    path: Path
    run: TrainingRun
    key: ModelKey = field(repr=False)

    def write(self, parts: tuple[EarlierPart, ...], steps: int, state: bytes, signer: Ed25519PrivateKey) -> None:
        """In the place of the last one, durably. signer: the key that the last part's evidence names."""
        body = msgspec.msgpack.encode(Left(parts, steps, state))
        if len(body) > MAX_CHECKPOINT_BYTES:
            raise TrainingFailed("What the training would leave is too large for a checkpoint; train without one.")
        salt = os.urandom(_SALT_BYTES)
        plaintext = signer.sign(self._signed(body)) + body
        sealed = AESGCM(self.key.file_key(salt, 0, _NAME)).encrypt(_NONCE, plaintext, self._about)
        replace_file(self.path, _MAGIC + salt + sealed, 0o600)

    def read(self) -> Left | None:
        """What another process of the run left; None where there is nothing. TrainingFailed for anything else."""
        try:
            content = read_bounded(self.path, MAX_CHECKPOINT_BYTES + 1024)
        except FileNotFoundError:
            return None
        except FileTooLarge:
            raise TrainingFailed(f"{self.path} is larger than any checkpoint; {_ANEW}.") from None
        except OSError as error:
            raise TrainingFailed(f"{self.path} cannot be read ({error.strerror}); {_ANEW}.") from None
        start = len(_MAGIC) + _SALT_BYTES
        try:
            if not content.startswith(_MAGIC):
                raise InvalidTag
            key = AESGCM(self.key.file_key(content[len(_MAGIC) : start], 0, _NAME))
            plaintext = key.decrypt(_NONCE, content[start:], self._about)
            signature, body = plaintext[:_SIGNATURE_BYTES], plaintext[_SIGNATURE_BYTES:]
            left = msgspec.msgpack.decode(body, type=Left)
        except (InvalidTag, msgspec.MsgspecError, ValueError, RecursionError):
            raise TrainingFailed(f"{self.path} is no checkpoint of this run, or it was changed; {_ANEW}.") from None
        if not signed_by(left.parts[-1].key, signature, self._signed(body)):
            raise TrainingFailed(f"{self.path} was not left by a process of this run, but made by others; {_ANEW}.")
        if len(left.parts) > MAX_EARLIER:
            raise TrainingFailed(
                f"The run was killed more than {MAX_EARLIER} times, which no certificate holds; {_ANEW}."
            )
        return left

    @property
    def _about(self) -> bytes:
        return _MAGIC + bytes.fromhex(self.run.digest)

    def _signed(self, body: bytes) -> bytes:
        return self._about + hashlib.sha256(body).digest()


@dataclass(frozen=True)
class Process:
    """This process of a run: what an earlier one left, and the evidence for what it leaves itself."""

    checkpoints: Checkpoints
    signer: Ed25519PrivateKey = field(repr=False)
    attested: Attested
    started: datetime
    left: Left | None

    @property
    def earlier(self) -> tuple[EarlierPart, ...]:
        """The parts before it."""
        return self.left.parts if self.left else ()

    def leave(self, steps: int, state: bytes) -> None:
        """Write what the training is after so many steps."""
        own = EarlierPart(self.attested, self.started, steps)
        self.checkpoints.write((*self.earlier, own), steps, state, self.signer)
