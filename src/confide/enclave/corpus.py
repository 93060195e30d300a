"""From a sealed corpus to an index: evidence first, then the key, then chunks and models, in memory alone."""

import msgspec

from confide.attest.configuration import CorpusServed
from confide.enclave.boot import Fetch
from confide.enclave.egress import WaysOut
from confide.enclave.workload import Workload
from confide.packages.sealed.corpus import SealedCorpus
from confide.rag.index import Index


def load_corpus(package: SealedCorpus, workload: Workload, fetch: Fetch, *, ways: WaysOut | None = None) -> Index:
    """Have the key released to this workload, and index the corpus.

    The head's digest stands in the statement, in the place of a model's, before the workload attests; so the owner's
    key service releases the key for the head that it was told of, and for no other.

    Raises what `fetch` raises, InvalidPackage where the package is not what its owner signed, and
    ModelNotSupported where a model in it cannot be run.
    """
    ways, manifest = ways or WaysOut(), package.manifest
    served = CorpusServed(manifest.corpus, manifest.head, manifest.digest, str(package.owner))
    workload.model_digest = manifest.digest
    workload.configuration = msgspec.structs.replace(workload.configuration, egress=ways.stated, corpus=served)
    key = fetch(manifest.key, workload)
    ways.close_keys()
    index = Index.of(package.unlock(key))
    workload.configuration = msgspec.structs.replace(workload.configuration, egress=ways.stated)
    return index
