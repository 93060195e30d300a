"""What others publish on private inference: their figures on their machines, read and not run by us.

Only what its authors state is here, with where they state it. A figure without a source has no row, and one that is
not to be believed as it stands says why.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A figure of others. hardware: as they name it. apart: what of it is not comparable with ours.

    doubt: why it is not to be taken as it stands; empty where nothing speaks against it.
    """

    who: str
    what: str
    figure: str
    hardware: str
    source: str
    address: str
    apart: str
    doubt: str = ""


OURS = "GPT-2-small shape, decode / stock fp32"
"""The figure of the question `whole_model` that stands beside them."""
PUBLISHED = (
    Published(
        "Concrete ML, GLWE on a processor",
        "GPT-2, one token, every linear layer on the server",
        "about 300 s, 2.2 MB",
        "a processor that is not named",
        "Zama, Concrete ML documentation, LLM inference",
        "https://docs.zama.org/concrete-ml/llms/inference",
        "The same division of work as ours, without a hint and without work ahead: all of it is done once the token is "
        "known, and nothing hides the weights from what answers say of them.",
        "It is a round number of an unnamed machine.",
    ),
    Published(
        "Concrete ML, GLWE on a GPU",
        "GPT-2, one token, every linear layer on the server",
        "about 11 s, 2.2 MB",
        "a desktop GPU that is not named",
        "Zama, Concrete ML documentation, LLM inference, and its notebook",
        "https://docs.zama.org/concrete-ml/llms/inference",
        "As above, and a GPU against our processor.",
        "It is a round number of an unnamed machine.",
    ),
    Published(
        "Perseus, CKKS",
        "GPT-2 small, one token at a context of 512",
        "2.62 s",
        "one NVIDIA RTX PRO 6000",
        "GLADIA research group, README of perseus",
        "https://github.com/gladia-research-group/perseus",
        "The whole model on ciphertexts, with polynomials for what is not linear, and a GPU against our processor; the "
        "server has the weights in the clear.",
        "Another version of that README (commit 2006e1f) has 11.78 s for the same model on the same GPU.",
    ),
    Published(
        "Park et al., CKKS",
        "Llama-2-7B, one token",
        "33 s",
        "eight NVIDIA RTX 4090",
        "Scaling up Privacy-Preserving ML: A CKKS Implementation of Llama-2-7B, abstract",
        "https://arxiv.org/abs/2601.18511",
        "A model fifty times the size, of whose up to 4,096 input tokens the last 128 alone are encrypted.",
    ),
    Published(
        "BumbleBee, two parties",
        "LLaMA-7B, one token",
        "about 8 min",
        "processors that the abstract does not name",
        "Lu et al., NDSS 2025, abstract",
        "https://www.ndss-symposium.org/ndss-paper/"
        "bumblebee-secure-two-party-inference-framework-for-large-transformers",
        "The client has no part of the model, where ours has all but the linear layers, and a hint of these.",
    ),
    Published(
        "PermLLM, two parties",
        "ChatGLM-6B, one token",
        "about 3 s",
        "a line of 10 ms and 1 Gbit/s; the machines are not named in the abstract",
        "Zheng et al., PermLLM, abstract",
        "https://arxiv.org/abs/2405.18744",
        "It shows one party hidden states in an order that the other keeps to itself, which no hard problem hides.",
        "Prompts were recovered from permuted hidden states nearly perfectly, for three schemes of this kind "
        "(https://arxiv.org/abs/2505.18332).",
    ),
)
