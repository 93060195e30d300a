"""The corpus at the other end of an edge: a model service asks it, and its receipts say which one it was."""

import httpx

from confide.attest.configuration import CorpusServed
from confide.client.edge import Edge
from confide.client.relying_party import Verified
from confide.client.transport import VERIFIED
from confide.enclave.api.sources import Search


def search_through(edge: Edge) -> Search:
    """For `Serving`. edge: to a service whose policy says which corpus it has to have."""
    return Search(edge.client(), _served)


def _served(response: httpx.Response) -> CorpusServed | None:
    verified: Verified = response.extensions[VERIFIED]
    configuration = verified.statement.configuration
    corpus = None if configuration is None else configuration.corpus
    return corpus if isinstance(corpus, CorpusServed) else None
