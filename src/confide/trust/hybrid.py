"""The trust statements of the hybrid mode. The threat model has the long version of each sentence."""

from confide.rlwe.parameters import Profile
from confide.trust.statement import Exposure, TrustStatement

_YOU = ("you",)
_SERVER = ("the layer server",)


def remote_trust(profile: Profile) -> TrustStatement:
    """Of a model whose protected layers are on a server."""
    private = profile is Profile.PRIVATE_WEIGHTS
    pads = (
        "RLWE at 128 bits, under a secret that lives for one token"
        if private
        else "one-time pads, which nothing breaks"
    )
    mine = Exposure(_YOU, _SERVER, f"{pads}; wrong answers pass with 2^-61 a token")
    secret = Exposure(
        ("the owner", *_SERVER),
        _YOU,
        "RLWE at 128 bits for the hint; each token discloses up to 32 bits of every output, which the server meters "
        "against what the weights hold and does not prevent",
    )
    public = Exposure(("everybody",), (), "the profile open-weights does not protect them")
    return TrustStatement(
        "hybrid",
        prompt=mine,
        weights=secret if private else public,
        output=mine,
        leaks=(
            "the server sees when you ask, padded lengths, batch sizes and which layers",
            "embeddings, norms, biases, scales and unprotected layers are in the shell, which you hold",
            "that you stay away after a wrong answer tells the server about one bit",
        ),
    )


def local_trust() -> TrustStatement:
    """Of a model that runs here as a whole, in the clear or simulated."""
    here = Exposure(_YOU, (), "everything is in this process")
    return TrustStatement(
        "none", here, here, here, ("nothing is hidden from this machine; split the model to protect it",)
    )
