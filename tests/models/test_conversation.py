"""Chat templates that refuse, those that fail, and the plain one."""

import hashlib
from pathlib import Path

import pytest
from tests.scripted import byte_fallback, byte_level, fast
from tokenizers import processors

from confide.enclave.engines.engine import EngineFacts, Message
from confide.enclave.engines.prompts import Prompted, Prompts
from confide.enclave.engines.tools import Tool
from confide.errors import ConversationRefused, RequestRefused
from confide.models.conversation import PLAIN_TEMPLATE, render, template_of

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


CONVERSATION = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "How are you?"},
]


def test_without_a_template_there_is_a_plain_one() -> None:
    tokenizer = fast(byte_level())
    expected = "System: Be brief.\n\nUser: Hello\n\nAssistant: Hi.\n\nUser: How are you?\n\nAssistant:"
    assert render(tokenizer, CONVERSATION) == expected
    assert template_of(tokenizer) == PLAIN_TEMPLATE
    tokenizer.chat_template = "{{ messages[-1].content }}"
    assert render(tokenizer, CONVERSATION) == "How are you?"
    assert template_of(tokenizer) == tokenizer.chat_template


def test_the_documentation_has_the_plain_templates_digest() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    assert hashlib.sha256(PLAIN_TEMPLATE.encode()).hexdigest() in page


@pytest.mark.parametrize("by_text", [True, False])
def test_a_plain_prompt_begins_as_any_text_does(by_text: bool) -> None:
    tokenizer = fast(byte_fallback(), bos_token="<s>", eos_token="</s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    prompts = Prompts(tokenizer, 1000, by_text=by_text)
    prompt = prompts.read([Message("user", "ab")])
    assert prompt.text == "User: ab\n\nAssistant:"
    assert list(prompt.tokens) == tokenizer(prompt.text)["input_ids"]
    assert prompt.tokens[0] == 1
    assert prompts.template == PLAIN_TEMPLATE


def test_whoever_runs_a_model_without_a_template_is_told(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = fast(byte_level())
    facts = EngineFacts("m\x1b", "e", "f32", 1000)
    Prompted(facts, Prompts(tokenizer, 1000, by_text=True))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "has no chat template" in record.getMessage()
    assert "\x1b" not in record.getMessage()
    tokenizer.chat_template = ALTERNATES
    Prompted(facts, Prompts(tokenizer, 1000, by_text=True))
    assert len(caplog.records) == 1


def test_a_plain_prompt_tells_of_no_tools() -> None:
    prompts = Prompts(fast(byte_level()), 1000, by_text=True)
    with pytest.raises(RequestRefused, match="`tools`"):
        prompts.render([Message("user", "look")], [Tool("look")])
