"""What the server sends back."""

import msgspec

from confide.errors import MalformedMessage


class EncryptedResult(msgspec.Struct, frozen=True):
    """Two ciphertexts at level 0: context vectors, and what the client checks the ranges by."""

    context: bytes
    checks: bytes

    def to_bytes(self) -> bytes:
        """For the wire."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, message: bytes) -> "EncryptedResult":
        """Raises MalformedMessage."""
        try:
            return msgspec.msgpack.decode(message, type=cls)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise MalformedMessage("This is not the result of an attention block; ask the server again.") from error
