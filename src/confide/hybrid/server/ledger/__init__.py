"""What a layer server must never forget: spent indexes, request digests, licences and usage."""

from confide.hybrid.server.ledger.ledger import Ledger

__all__ = ["Ledger"]
