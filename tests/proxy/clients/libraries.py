"""One of the libraries that speak OpenAI's API, used as its users use it: python libraries.py NAME.

Prints what it got as JSON. Where the proxy is, the environment says. It runs in .venv-clients, where Confide is not.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Got = dict[str, Any]
SAYS = "good morning"
LONG = "word " * 500


def failure(ask: Callable[[], object]) -> str:
    """The sentence that a user would see."""
    try:
        ask()
    except Exception as error:  # noqa: BLE001 - whatever the library makes of it
        return str(error)
    raise AssertionError("That should not have been answered.")


def litellm() -> Got:
    import litellm

    def chat(model: str = "openai/echo", **more: Any) -> Any:
        return litellm.completion(model=model, messages=[{"role": "user", "content": SAYS}], num_retries=0, **more)

    parts = [part.choices[0].delta.content or "" for part in chat(stream=True)]
    litellm.drop_params = False
    leaving = litellm.text_completion(model="text-completion-openai/echo", prompt=LONG, stream=True)
    next(iter(leaving))
    del leaving
    return {
        "whole": chat().choices[0].message.content,
        "usage": chat().usage.total_tokens,
        "streamed": "".join(parts),
        "text": litellm.text_completion(model="text-completion-openai/echo", prompt="a").choices[0].text,
        "embedding": litellm.embedding(model="openai/echo", input=["abc"]).data[0]["embedding"],
        "failure": failure(lambda: chat("openai/other")),
    }


def langchain() -> Got:
    from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

    chat = ChatOpenAI(model="echo")
    whole = chat.invoke(SAYS)
    leaving = OpenAI(model="echo", max_tokens=450).stream(LONG)
    next(leaving)
    leaving.close()  # type: ignore[attr-defined]
    return {
        "whole": whole.content,
        "usage": whole.usage_metadata["total_tokens"] if whole.usage_metadata else 0,
        "streamed": "".join(str(part.content) for part in chat.stream(SAYS)),
        "text": OpenAI(model="echo").invoke("a"),
        # Its default counts tokens by a table that it fetches from elsewhere.
        "embedding": OpenAIEmbeddings(model="echo", check_embedding_ctx_length=False).embed_query("abc"),
        "failure": failure(lambda: ChatOpenAI(model="other").invoke(SAYS)),
    }


def llamaindex() -> Got:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    place = {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"], "max_retries": 0}
    says = [ChatMessage(role="user", content=SAYS)]
    chat = OpenAILike(model="echo", is_chat_model=True, **place)
    whole = chat.chat(says)
    text = OpenAILike(model="echo", is_chat_model=False, **place)
    leaving = text.stream_complete(LONG, max_tokens=450)
    next(leaving)
    leaving.close()
    return {
        "whole": whole.message.content,
        "usage": whole.raw.usage.total_tokens,
        "streamed": "".join(part.delta or "" for part in chat.stream_chat(says)),
        "text": text.complete("a").text,
        "failure": failure(lambda: OpenAILike(model="other", is_chat_model=True, **place).chat(says)),
    }


if __name__ == "__main__":
    got = {"litellm": litellm, "langchain": langchain, "llamaindex": llamaindex}[sys.argv[1]]()
    sys.stdout.write("\n" + json.dumps(got))
