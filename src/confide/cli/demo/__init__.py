"""`confide demo`: each protection end to end on this machine, with the built-in model."""

import typer

from confide.cli.demo import enclave, hybrid, page

app = typer.Typer(name="demo", help="Each protection end to end, on this machine, with the built-in model.")
app.callback(invoke_without_command=True)(hybrid.command)
app.command("enclave")(enclave.command)
app.command("page")(page.command)
