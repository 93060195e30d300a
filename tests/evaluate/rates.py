"""Rates of a machine that need not be measured."""

from confide.evaluate.cost_model import ClientRates, GroupRate, ServerRates

SERVER = ServerRates(
    request=GroupRate(1e-4, 1e-8, 1e-8, 0),
    wakeups=GroupRate(5e-5, 0, 0, 0),
    products=(
        (1, GroupRate(5e-5, 0, 0, 1e-10)),
        (4, GroupRate(5e-5, 0, 0, 3e-10)),
        (16, GroupRate(5e-5, 0, 0, 1e-9)),
        (64, GroupRate(5e-5, 0, 0, 4e-9)),
    ),
    threads=1.5,
)
CLIENT = ClientRates(
    token=GroupRate(1e-4, 0, 1e-8, 0), prompt_token=GroupRate(0, 1e-8, 1e-8, 0), pads=GroupRate(0, 1e-7, 1e-8, 0)
)
