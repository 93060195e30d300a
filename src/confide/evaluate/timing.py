"""When each token of a generation came."""

import statistics
import time
from collections.abc import Callable

import torch
from transformers.generation.streamers import BaseStreamer


class TokenClock(BaseStreamer):
    """A streamer that notes the time of every token, and hands text on to another streamer if there is one."""

    def __init__(self, inner: BaseStreamer | None = None, on_token: Callable[[int], None] | None = None) -> None:
        self._inner = inner
        self._on_token = on_token
        self._times = [time.perf_counter()]
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate` with the prompt first, then with each token."""
        if self._inner:
            self._inner.put(value)
        if self._prompt_seen:
            self._times.append(time.perf_counter())
            if self._on_token:
                self._on_token(len(self._times) - 1)
        self._prompt_seen = True

    def end(self) -> None:
        """Called by `generate` at the end."""
        if self._inner:
            self._inner.end()

    @property
    def ms_to_first_token(self) -> float:
        """From the clock's making to the first token; NaN where there was none."""
        return (self._times[1] - self._times[0]) * 1e3 if len(self._times) > 1 else float("nan")

    @property
    def ms_per_token(self) -> float:
        """Median time between tokens after the first; the first one's where there is no other."""
        gaps = [(later - earlier) * 1e3 for earlier, later in zip(self._times[1:], self._times[2:], strict=False)]
        return statistics.median(gaps) if gaps else self.ms_to_first_token
