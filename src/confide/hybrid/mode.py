"""Where the integer products of a hybrid model are computed."""

from enum import StrEnum


class Mode(StrEnum):
    """clear: here, plainly. simulate: here, with all of the protocol's arithmetic. remote: on a layer server."""

    CLEAR = "clear"
    SIMULATE = "simulate"
    REMOTE = "remote"
