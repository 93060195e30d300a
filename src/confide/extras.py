"""What an installation has: Confide is installed by role, and what a role lacks is named when it is needed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from confide.errors import NotInstalled

EXTRAS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("gguf", "safetensors", "tokenizers", "torch", "tqdm", "transformers", "websockets"), "hybrid"),
        **dict.fromkeys(("prometheus_client", "starlette", "uvicorn", "uvloop"), "proxy"),
        **dict.fromkeys(("httpx_sse", "picows", "xllamacpp"), "server"),
        "obstore": "objects",
        "ray": "cluster",
        "tenseal": "attention",
        **dict.fromkeys(("matplotlib", "simpy"), "evaluate"),
        "pynvml": "gpu",
        "sigstore": "sigstore",
        "peft": "adapters",
        **dict.fromkeys(("bm25s", "docx", "pypdf", "python_multipart"), "rag"),
        **dict.fromkeys(("psycopg", "psycopg_pool"), "postgres"),
        "opentelemetry": "traces",
        **dict.fromkeys(("jinja2", "sevsnpmeasure", "yaml"), "deploy"),
    }
)
"""By the module that is imported: the extra of `pyproject.toml` that has it."""


@contextmanager
def named_extras() -> Iterator[None]:
    """Around imports: NotInstalled, which names the extra, where one of its modules is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            raise
        raise NotInstalled(
            f"This needs {missing}, which is not installed; run `pip install 'confide[{EXTRAS[missing]}]'`."
        ) from error
