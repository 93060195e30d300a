"""What a layer server must never forget: licences, and what was answered to each."""

from confide.hybrid.server.ledger.ledger import Ledger

__all__ = ["Ledger"]
