"""The history of a chat: what is sent with each question, and what becomes of turns that were not finished."""

from collections.abc import Callable
from contextlib import closing

from confide.client.session import Pieces

Ask = Callable[[list[dict[str, str]]], Pieces]
"""Takes messages, gives the answer."""


class Conversation:
    """Turns of a user and a model, in the form that `Session.chat` takes. system: how the model should behave."""

    def __init__(self, system: str = "") -> None:
        self._system = [{"role": "system", "content": system}] if system else []
        self._turns: list[dict[str, str]] = []

    def __repr__(self) -> str:
        return f"Conversation({len(self._turns)} turns)"

    @property
    def messages(self) -> list[dict[str, str]]:
        """Everything said so far, oldest first."""
        return [*self._system, *self._turns]

    def clear(self) -> None:
        """Forget everything but the system's message."""
        self._turns.clear()

    def say(self, text: str, ask: Ask) -> Pieces:
        """The answer to a text, piece by piece; afterwards both are in the history.

        An answer that is stopped by its reader, by an interruption for example, stays as far as it came. Of one that
        failed, or was stopped before its first piece, nothing stays, so that the text can be said again.
        """
        question = {"role": "user", "content": text}
        answer = ""
        try:
            with closing(ask([*self.messages, question])) as pieces:
                for piece in pieces:
                    answer += piece
                    yield piece
        except Exception:
            answer = ""
            raise
        finally:
            if answer:
                self._turns += [question, {"role": "assistant", "content": answer}]
