"""What protecting a model would cost, for each choice of layers, before anything runs or is downloaded."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from confide.evaluate.cost_model import (
    Cost,
    Cut,
    Disclosure,
    GroupShape,
    Network,
    Rates,
    SkeletonTimes,
    ahead_cost,
    disclosure,
    prompt_cost,
    token_cost,
)
from confide.evaluate.skeleton import time_skeleton
from confide.models.context import require_room
from confide.models.linear import first_tied, linear_weights
from confide.models.roles import ModelLayers, find_layers
from confide.models.source import Source

HINT_LIMIT = 10e9
"""Bytes on the client's disk above which a hint is worth a warning."""
FETCHING_LIMIT = 600.0
"""Seconds of fetching it above which it is."""
TOKEN_LIMIT = 3.0
"""Seconds for a token above which nobody waits for a text."""


@dataclass(frozen=True)
class Choice:
    """What to protect: a name for people, and the words for `confide split --protect`."""

    name: str
    protect: str
    cut: Cut


@dataclass(frozen=True)
class Outlook:
    """What a choice costs.

    prompt: the prompt's forward pass. token: one step of decoding. ahead: the work ahead of one token, which is done
    beside others' or in pauses. disclosure: after all tokens.
    """

    choice: Choice
    share: float
    ahead: Cost
    prompt: Cost
    token: Cost
    disclosure: Disclosure

    @property
    def round_trips(self) -> int:
        """For each token."""
        return len(self.choice.cut.protected)


@dataclass(frozen=True)
class Warned:
    """A reason not to go on like this: which choices it is about, and a sentence that says what to do instead."""

    code: str
    choices: tuple[str, ...]
    message: str


def protection_choices(layers: ModelLayers) -> list[Choice]:
    """The first layer group alone, attention, mlp, all of the blocks, and the head with them where it is not tied.

    Of a mixture of experts the first and attention only.
    """
    first = f"^({'|'.join(map(re.escape, layers.groups[0].layers))})$"
    words = [kind for kind in ("attention", "mlp") if kind in layers.kinds.values()]
    head = [layer for layer, kind in layers.kinds.items() if kind == "lm_head"]
    if layers.experts:
        words = ["attention"]
    else:
        words += ["all", "all,lm_head"] if head and not first_tied(layers.model, head) else ["all"]
    named = [("one layer", first), *zip(words, words, strict=True)]
    return [Choice(name, protect, cut_by(layers, protect)) for name, protect in named]


def cut_by(layers: ModelLayers, protect: str) -> Cut:
    """A model as `confide split --protect` would cut it; raises what `ModelLayers.select` does."""
    groups = [group.layers for group in layers.select(protect)]
    protected = {layer for group in groups for layer in group}
    alone = [(layer,) for group in layers.groups for layer in group.layers if layer not in protected]
    return Cut(tuple(_shape(layers, group) for group in groups), tuple(_shape(layers, layer) for layer in alone))


def _shape(layers: ModelLayers, group: tuple[str, ...]) -> GroupShape:
    shapes = [linear_weights(layers.model.get_submodule(layer)).shape for layer in group]
    rows, columns = zip(*shapes, strict=True)
    return GroupShape(sum(rows), columns[0], head=layers.kinds[group[0]] == "lm_head")


def make_plan(source: Source, rates: Rates, network: Network, *, tokens: int, prompt: int) -> list[Outlook]:
    """What every choice costs for a model, without its weights.

    tokens: of prompts and answers together. prompt: of the prompt before the first token. Takes the time of a few
    passes through the model's skeleton. PromptTooLong for a prompt beyond the model's context.
    """
    require_room(source.config, prompt, 1)
    layers = find_layers(source.config)
    choices = protection_choices(layers)
    parameters = layers.model.num_parameters()
    skeleton = time_skeleton(source.config, prompt)
    return [outlook(choice, parameters, rates, skeleton, network, tokens) for choice in choices]


def outlook(
    choice: Choice, parameters: int, rates: Rates, skeleton: SkeletonTimes, network: Network, tokens: int
) -> Outlook:
    """What a choice costs for so many tokens, of prompts and answers together, with a prompt like the skeleton's.

    parameters: of the whole model, tied ones once.
    """
    return Outlook(
        choice,
        share=choice.cut.protected_weights / parameters,
        ahead=ahead_cost(choice.cut, rates, network),
        prompt=prompt_cost(choice.cut, rates, skeleton, network),
        token=token_cost(choice.cut, rates, skeleton, network),
        disclosure=disclosure(choice.cut.protected, tokens),
    )


def warnings(outlooks: Sequence[Outlook], network: Network, tokens: int) -> list[Warned]:
    """Where the choices make no sense, one sentence for each reason."""
    reasons: list[tuple[str, Callable[[Outlook], bool], Callable[[Sequence[Outlook]], str]]] = [
        ("hint-size", lambda one: one.choice.cut.hint_bytes > HINT_LIMIT, _hint_size),
        (
            "hint-fetching",
            lambda one: network.seconds(0, one.choice.cut.hint_bytes) > FETCHING_LIMIT,
            partial(_hint_fetching, network=network),
        ),
        ("work-ahead", lambda one: one.ahead.seconds > one.token.seconds, _work_ahead),
        ("slow-token", lambda one: one.token.seconds > TOKEN_LIMIT, partial(_slow_token, network=network)),
        ("disclosure", lambda one: one.disclosure.licence_tokens < tokens, partial(_disclosure, tokens=tokens)),
    ]
    found = []
    for code, concerns, finding in reasons:
        if about := [one for one in outlooks if concerns(one)]:
            names = tuple(one.choice.name for one in about)
            found.append(Warned(code, names, f"With {_listed(names)}, {finding(about)}"))
    return found


def _hint_size(about: Sequence[Outlook]) -> str:
    return (
        f"the hint takes {_range(one.choice.cut.hint_bytes / 1e9 for one in about)} GB of the client's disk; protect "
        "fewer layers, such as those of a few blocks, unless it has that room."
    )


def _hint_fetching(about: Sequence[Outlook], network: Network) -> str:
    hours = _range(network.seconds(0, one.choice.cut.hint_bytes) / 3600 for one in about)
    return (
        f"the hint takes {hours} hours over this line, once; hand it out another way (`confide split --no-hint`, "
        "`confide hint fetch`), or protect fewer layers."
    )


def _work_ahead(about: Sequence[Outlook]) -> str:
    milliseconds = _range(one.ahead.seconds * 1e3 for one in about)
    return (
        f"the work ahead of a token takes {milliseconds} ms, longer than the token itself, so that long answers wait "
        "for it; give the client more cores, or protect fewer layers."
    )


def _slow_token(about: Sequence[Outlook], network: Network) -> str:
    travelling = sum(network.seconds(one.round_trips, one.token.bytes) for one in about)
    waiting = travelling > sum(one.token.seconds for one in about) / 2
    remedy = "bring the server nearer or take a faster line" if waiting else "take faster machines"
    return f"a token takes {_range(one.token.seconds for one in about)} seconds; {remedy}, or protect fewer layers."


def _disclosure(about: Sequence[Outlook], tokens: int) -> str:
    return (
        f"a licence with the default limit ends after {_range(one.disclosure.licence_tokens for one in about)} of "
        f"{tokens:,} tokens, because more could solve a layer's weights; plan fewer tokens for each licensee, or let "
        "the owner allow more with `confide licence create --disclosure`."
    )


def _listed(names: Sequence[str]) -> str:
    *others, last = (f"`{name}`" for name in names)
    return f"{', '.join(others)} or {last}" if others else last


def _range(values: Iterable[float]) -> str:
    """The smallest and the largest, such as 12 to 45, or one of them where they read the same."""
    found = list(values)
    least, most = (f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in (min(found), max(found)))
    return least if least == most else f"{least} to {most}"
