import pytest

from confide.hybrid.client.padding import NO_PADDING, Padding


@pytest.mark.parametrize(("tokens", "visible"), [(1, 16), (15, 16), (16, 16), (17, 32)])
def test_lengths_round_up(tokens: int, visible: int) -> None:
    assert Padding().prompt_tokens(tokens) == visible
    assert Padding().answer_tokens(tokens, most=64) == visible


def test_prompt_and_answer_have_multiples_of_their_own() -> None:
    padding = Padding(prompt=10, answer=7)
    assert (padding.prompt_tokens(11), padding.answer_tokens(11, most=99)) == (20, 14)


def test_a_full_answer_is_always_the_longest() -> None:
    padding = Padding(answer=None)
    assert [padding.answer_tokens(tokens, most=50) for tokens in (1, 50)] == [50, 50]
    assert padding.longest(50) == 50


def test_a_failed_run_looks_like_the_longest_answer() -> None:
    padding = Padding(answer=16)
    assert padding.longest(50) == padding.answer_tokens(50, most=50) == 64


def test_without_padding_every_length_is_itself() -> None:
    assert [NO_PADDING.prompt_tokens(7), NO_PADDING.answer_tokens(7, 9), NO_PADDING.longest(9)] == [7, 7, 9]


@pytest.mark.parametrize("lengths", [(0, 1), (1, 0), (-1, None)])
def test_multiples_below_one_are_refused(lengths: tuple[int, int | None]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Padding(*lengths)
