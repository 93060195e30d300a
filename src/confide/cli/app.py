"""The verbs, and what happens to an error that reaches the top: one sentence, an exit code, no traceback."""

import importlib
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperOption

from confide.cli import output
from confide.cli.explain import explained
from confide.cli.settings import configure, origin
from confide.extras import named_extras
from confide.logs import TextLines
from confide.printable import printable
from confide.version import VERSION

_INTERRUPTED = 130
_BROKEN_PIPE = 141

_COMMANDS: Final = (
    "plan",
    "split",
    "fetch",
    "checks",
    "serve",
    "generate",
    "chat",
    "proxy",
    "setup",
    "distrust",
    "doctor",
    "quantize",
    "seal",
    "open",
    "top",
)
_GROUPS: Final = (
    "hint",
    "demo",
    "evaluate",
    "bench",
    "owner",
    "tls",
    "licence",
    "ledger",
    "attest",
    "receipt",
    "audit",
    "tee",
    "keys",
    "certify",
    "rag",
    "collection",
    "graph",
    "guard",
    "train",
    "deploy",
    "cluster",
    "config",
)


def command_line(arguments: list[str]) -> typer.Typer:
    """The verb that is run alone, for to import them all takes a second; all where none of them is named."""
    app = typer.Typer(
        name="confide",
        help="Private language models on machines nobody has to trust.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        callback=_options,
    )
    words = iter(arguments)
    named = ""
    for word in words:
        if word == "--config":
            next(words, "")
        elif not word.startswith("-"):
            named = word
            break
    verbs = (*_COMMANDS, *_GROUPS)
    for verb in [named] if named in verbs else verbs:
        module = importlib.import_module(f"confide.cli.{verb}")
        if verb in _GROUPS:
            app.add_typer(module.app)
        else:
            app.command(verb)(module.command)
    return app


def _options(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version, and leave.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error was raised; goes before or after any command.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Goes before a service: the TOML file of its settings; config.toml in your Confide folder without."
        ),
    ] = None,
) -> None:
    """Private language models on machines nobody has to trust."""
    configure(ctx, config)


def main() -> None:
    """Run the command line."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    sys.argv[1:] = [argument for argument in arguments if argument != "--debug"]
    handler = logging.StreamHandler()
    handler.setFormatter(TextLines("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    as_json = "--json" in arguments
    try:
        if "--version" in arguments[:2]:
            _show_version(as_json=as_json)
            return
        with named_extras():
            code = (
                command_line(_typed() or arguments)(prog_name="confide", standalone_mode=False) or 0
            )  # of a typer.Exit, and 130 for what was a KeyboardInterrupt
        if code == _INTERRUPTED:
            output.note("Interrupted; a hint is kept as far as it was made, and the same command goes on from there.")
        sys.exit(code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read the output has left. What is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_BROKEN_PIPE)
    except Exception as error:  # noqa: BLE001 - each becomes a sentence; --debug shows the rest
        if debug:
            # What a library says of a fault can be what it was given by a peer.
            sys.stderr.write(printable(traceback.format_exc(), keep="\n"))
        if _is_usage(error):
            _show_usage(error, as_json=as_json)
            sys.exit(getattr(error, "exit_code", 2))
        problem = explained(error)
        output.error(problem, as_json=as_json)
        sys.exit(problem.exit_code)


def _typed() -> list[str]:
    """The words before the cursor, where this process is a shell's question of what can follow them."""
    if "_CONFIDE_COMPLETE" not in os.environ:
        return []
    return (os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")).split()[1:]


def _show_version(*, as_json: bool) -> None:
    if as_json:
        output.result({"version": VERSION})
    else:
        output.console.print(f"confide {VERSION}")


def _is_usage(error: Exception) -> bool:
    return type(error).__module__.startswith(("click", "typer")) and hasattr(error, "show")


def _show_usage(error: Any, *, as_json: bool) -> None:
    where = _given_elsewhere(error)
    if as_json:
        output.result({"error": {"code": "usage", "message": printable(error.format_message() + where)}})
        return
    error.show()
    if where:
        output.note(where.strip())


def _given_elsewhere(error: Any) -> str:
    """A sentence for a value that nobody sees on the command line."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    if context is None or not isinstance(parameter, TyperOption):
        return ""
    source, where = origin(context, parameter)
    return f" The value is given by {where}." if where and source != "flag" else ""
