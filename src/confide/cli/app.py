"""The verbs, and what happens to an error that reaches the top: one sentence, an exit code, no traceback."""

import logging
import sys
import traceback

import typer

from confide.cli import output
from confide.errors import ConfideError
from confide.extras import named_extras
from confide.logs import TextLines
from confide.printable import printable

_INTERRUPTED = 130

app = typer.Typer(
    name="confide",
    help="Private language models on machines nobody has to trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _register() -> None:
    from confide.cli import (
        attest,
        chat,
        checks,
        demo,
        distrust,
        evaluate,
        generate,
        hint,
        keys,
        ledger,
        licence,
        open,
        owner,
        plan,
        quantize,
        seal,
        serve,
        split,
        tee,
        tls,
    )

    for module in (plan, split, checks, serve, generate, chat, distrust, quantize, seal, open):
        app.command(module.__name__.rpartition(".")[2])(module.command)
    for group in (hint, demo, evaluate, owner, tls, licence, ledger, attest, tee, keys):
        app.add_typer(group.app)


def main() -> None:
    """Run the command line."""
    handler = logging.StreamHandler()
    handler.setFormatter(TextLines("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    _register()
    try:
        with named_extras():
            code = app(standalone_mode=False) or 0  # of a typer.Exit, and 130 for what was a KeyboardInterrupt
        if code == _INTERRUPTED:
            output.note("Interrupted; a hint is kept as far as it was made, and the same command goes on from there.")
        sys.exit(code)
    except ConfideError as error:
        output.error(error, as_json="--json" in sys.argv)
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(_INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - shown, and the end
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "show"):
            error.show()
            sys.exit(getattr(error, "exit_code", 2))
        # What a library says of a fault can be what it was given by a peer.
        sys.stderr.write(printable(traceback.format_exc(), keep="\n"))
        sys.exit(1)
