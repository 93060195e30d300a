"""Chat templates that refuse, and those that fail."""

import pytest
from tests.scripted import byte_level, fast

from confide.errors import ConversationRefused
from confide.models.conversation import render

ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate.') }}{% endif %}{{ m.content }};{% endfor %}"
)


def rendered(template: str, *roles: str) -> str:
    tokenizer = fast(byte_level())
    tokenizer.chat_template = template
    return render(tokenizer, [{"role": role, "content": "hi"} for role in roles])


def test_a_refusal_is_the_templates_own_sentence() -> None:
    assert rendered(ALTERNATES, "user", "assistant") == "hi;hi;"
    with pytest.raises(ConversationRefused, match=r"refuses this conversation: Roles must alternate\.$") as refused:
        rendered(ALTERNATES, "user", "user")
    assert refused.value.field == "messages"


def test_what_a_template_says_moves_no_cursor_and_is_short() -> None:
    with pytest.raises(ConversationRefused) as refused:
        rendered("{{ raise_exception('\x1b[2Jno\n' + 'x' * 5000) }}", "user")
    assert "\x1b" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content + 1 }}",
        "{{ nothing.at.all }}",
        "{% for %}",
        "{{ 1 / 0 }}",
        "{{ messages[7] }}{{ messages[7].x }}",
    ],
)
def test_a_template_that_fails_says_nothing_of_the_conversation(template: str) -> None:
    with pytest.raises(ConversationRefused, match="fails at this conversation") as refused:
        rendered(template, "user")
    assert "hi" not in str(refused.value).replace("this", "")
