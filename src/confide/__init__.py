"""Confide: private language models on machines nobody has to trust."""

from typing import TYPE_CHECKING, Final

from confide.errors import ConfideError
from confide.lazy import public_names
from confide.version import VERSION

if TYPE_CHECKING:
    from confide.client.connect import connect
    from confide.client.enclave import EnclaveSession
    from confide.client.hybrid import HybridSession
    from confide.client.session import Session
    from confide.evaluate.uniformity import uniformity_p_value
    from confide.hybrid.client.padding import Padding
    from confide.hybrid.model import HybridModel
    from confide.hybrid.server.record import read_record
    from confide.ledger.licences import licence_book
    from confide.models.source import open_model
    from confide.models.split import split
    from confide.packages.owner import OwnerKey, OwnerPublicKey
    from confide.trust.statement import TrustStatement

_MODULES: Final = {
    "EnclaveSession": "client.enclave",
    "HybridModel": "hybrid.model",
    "HybridSession": "client.hybrid",
    "OwnerKey": "packages.owner",
    "OwnerPublicKey": "packages.owner",
    "Padding": "hybrid.client.padding",
    "Session": "client.session",
    "TrustStatement": "trust.statement",
    "connect": "client.connect",
    "licence_book": "ledger.licences",
    "open_model": "models.source",
    "read_record": "hybrid.server.record",
    "split": "models.split",
    "uniformity_p_value": "evaluate.uniformity",
}

__all__ = [
    "ConfideError",
    "EnclaveSession",
    "HybridModel",
    "HybridSession",
    "OwnerKey",
    "OwnerPublicKey",
    "Padding",
    "Session",
    "TrustStatement",
    "connect",
    "licence_book",
    "open_model",
    "read_record",
    "split",
    "uniformity_p_value",
]
__version__ = VERSION
__getattr__ = public_names(__name__, _MODULES)
