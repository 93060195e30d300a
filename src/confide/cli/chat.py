"""`confide chat`: talk to a confidential model, with what was verified in view."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from json import dumps as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from confide.cli import output
from confide.cli.explain import explained
from confide.cli.history import History
from confide.cli.options import (
    Ca,
    InsecureNoTls,
    Json,
    LicenceFile,
    Offline,
    Proxy,
    Replicas,
    SimulatedRoot,
    UserPolicy,
    licence_key,
    require_text,
)
from confide.disk.files import create_file
from confide.disk.home import make_home
from confide.errors import ConfideError, KeyChanged
from confide.printable import printable

if TYPE_CHECKING:
    from confide.client.session import Pieces, Session

HELP = (
    "/verify  verify again, show every check   /receipt [FOLDER]  check the last answer's, keep it   "
    "/model [NAME]  show the models, choose one   /save FILE  keep the conversation   "
    '/clear  forget it   """  begin and end several lines   /quit  leave   Ctrl-C  stop an answer'
)
_FENCE = '"""'


def command(
    urls: Annotated[
        list[str],
        typer.Argument(
            help="https:// for a model in a trusted environment, several for its replicas; wss:// for a layer server.",
            metavar="URL...",
        ),
    ],
    policy: UserPolicy = None,
    simulated_root: SimulatedRoot = None,
    ra_tls: Annotated[
        bool, typer.Option("--ra-tls", help="TLS ends inside the workload, whose certificate carries evidence.")
    ] = False,
    offline: Offline = False,
    replicas: Replicas = None,
    shell: Annotated[
        Path | None, typer.Option(help="For a layer server: the client folder that `confide split` wrote.")
    ] = None,
    licence_file: LicenceFile = None,
    once: Annotated[str | None, typer.Option(help="Say this, print the answer, and leave.", metavar="TEXT")] = None,
    system: Annotated[str, typer.Option(help="How the model should behave.", metavar="TEXT")] = "",
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of an answer at most.", min=1)] = None,
    history: Annotated[
        bool, typer.Option("--history/--no-history", help="Keep what you type, in a file that is for you alone.")
    ] = True,
    ca: Ca = None,
    proxy: Proxy = None,
    insecure_no_tls: InsecureNoTls = False,
    json: Json = False,
) -> None:
    """Chat with a model. It is verified before anything is sent, and what was verified stays in view."""
    if json and once is None:
        raise typer.BadParameter("--json goes with --once")
    require_text(once or "", "--once")
    require_text(system, "--system")
    from confide.client.connect import connect

    evidence: dict[str, Any] = {
        "policy": policy,
        "simulated_root": simulated_root,
        "ra_tls": ra_tls,
        "offline": offline,
    }
    if replicas is not None:  # which a layer server has not
        evidence["replicas"] = replicas
    hybrid: dict[str, Any] = {"shell": shell, "progress": not json} if shell else {}
    if proxy is not None:  # which a model in a trusted environment does not take
        hybrid["proxy"] = proxy
    licence = licence_key(licence_file)
    with connect(urls, **evidence, **hybrid, licence=licence, ca=ca, insecure_no_tls=insecure_no_tls) as session:
        chat = Chat(session, system, max_tokens)
        if json:
            output.result({"text": "".join(chat.pieces(once or "")), **describe(session)})
        elif once is not None:
            output.messages.print(headline(session), soft_wrap=True)
            chat.answer(once)
        else:
            output.console.print(headline(session), soft_wrap=True)
            output.console.print(Text(HELP, "dim"))
            chat.run(typed_lines(open_history() if history else None))


class Chat:
    """One conversation at a terminal."""

    def __init__(self, session: "Session", system: str = "", max_tokens: int | None = None) -> None:
        from confide.client.conversation import Conversation

        self._session = session
        self._conversation = Conversation(system)
        self._options: dict[str, Any] = {"max_tokens": max_tokens} if max_tokens else {}

    def run(self, lines: Iterable[str | None]) -> None:
        """Take each line as a command or as something said, until there is no more or `/quit` comes.

        Lines between two that begin and end with three quotation marks are one.
        """
        for text, is_said in _joined(lines):
            if text == "/quit" and not is_said:
                return
            try:
                if is_said and text:
                    self._answer_until_interrupted(text)
                else:
                    self._take(text)
            except ConfideError as error:
                output.error(error, as_json=False)
                if isinstance(error, KeyChanged):
                    output.note("Type /verify to do that.")

    def _take(self, text: str) -> None:
        match text:
            case "":
                pass
            case "/verify":
                self._verify()
            case "/receipt":
                self._receipt("")
            case _ if text.startswith("/receipt "):
                self._receipt(text.removeprefix("/receipt ").strip())
            case "/model":
                for name in self._session.models:
                    output.console.print(Text(f"{'*' if name == self._model else ' '} {printable(name)}"))
            case _ if text.startswith("/model "):
                self._choose(text.removeprefix("/model ").strip())
            case _ if text.startswith("/save "):
                self._save(Path(text.removeprefix("/save ").strip()).expanduser())
            case "/clear":
                self._conversation.clear()
                output.note("The conversation is forgotten.")
            case _ if text.startswith("/"):
                output.note(HELP)
            case _:
                self._answer_until_interrupted(text)

    def _answer_until_interrupted(self, text: str) -> None:
        try:
            self.answer(text)
        except KeyboardInterrupt:
            output.console.print()
            output.note("Stopped.")

    def answer(self, text: str) -> None:
        """Print the answer as it comes."""
        with closing(self.pieces(text)) as pieces:
            for piece in pieces:
                output.words(piece)
        output.console.print()

    def pieces(self, text: str) -> "Pieces":
        """The answer, piece by piece."""
        return self._conversation.say(text, lambda messages: self._session.chat(messages, stream=True, **self._options))

    @property
    def _model(self) -> str:
        return self._options.get("model") or self._session.model

    def _choose(self, name: str) -> None:
        if name not in self._session.models:
            output.note("There is no model of this name here; /model shows those that there are.")
            return
        self._options["model"] = name
        output.console.print(headline(self._session, name), soft_wrap=True)

    def _save(self, path: Path) -> None:
        messages = self._conversation.messages
        if not any(message["role"] == "assistant" for message in messages):
            output.note("Nothing was said yet.")
            return
        about = describe(self._session, self._model)
        if path.suffix == ".json":
            content = json_text({**about, "messages": messages}, indent=2)
        else:
            turns = (f"## {message['role']}\n\n{message['content']}\n" for message in messages)
            content = "\n".join([f"{headline(self._session, self._model).plain}\n", *turns])
        try:
            create_file(path, printable(content, keep=output.KEPT).encode())
        except OSError as error:
            raise explained(error) from error
        output.note(f"Kept in {path}, in the clear, for you alone.")

    def _verify(self) -> None:
        from confide.cli.attest import show
        from confide.client.enclave import EnclaveSession

        if isinstance(self._session, EnclaveSession):
            self._session.verify()
            for one in self._session.replicas:
                show(one.result)
        output.console.print(Text(str(self._session.trust)), soft_wrap=True)
        output.console.print(headline(self._session, self._model), soft_wrap=True)

    def _receipt(self, folder: str) -> None:
        from confide.cli.receipt import show
        from confide.client.enclave import EnclaveSession

        try:
            show(self._session.save_receipt(folder) if folder else self._session.receipt())
        except OSError as error:
            raise explained(error) from error
        if not folder:
            return
        how = "--bundle bundle.json" if isinstance(self._session, EnclaveSession) else "--client-key KEY"
        output.note(
            f"Kept in {folder}, question and answer in the clear. Later: cd there, and confide receipt verify "
            f"receipt.json {how} --request request --response response"
        )


def headline(session: "Session", model: str = "") -> Text:
    """What protects this conversation, in one line. model: the one that is chosen; the session's without."""
    about = describe(session, model)
    line = Text()
    if about["simulated"]:
        line.append("SIMULATED, nothing is protected", "bold red")
    else:
        line.append("verified" if about["verified"] else "encrypted", "bold green")
    for name in ("tee", "root", "protection", "model", "model_digest"):
        if about[name]:
            line.append(f"   {name.replace('_', ' ')} ", "dim").append(printable(about[name]))
    if about["replicas"]["at_most"] > 1:
        line.append("   replicas ", "dim").append(
            "{verified} verified of at most {at_most}".format(**about["replicas"])
        )
    return line


def describe(session: "Session", model: str = "") -> dict[str, Any]:
    """The same for machines. verified: by evidence; a hybrid server has none, and its every answer is checked."""
    from confide.client.enclave import EnclaveSession
    from confide.trust.enclave import root_of

    about = {"protection": session.trust.protection, "model": model or session.model}
    if not isinstance(session, EnclaveSession):
        nothing = {"verified": False, "simulated": False, "tee": "", "root": "", "model_digest": ""}
        return {**nothing, **about, "replicas": {"verified": 0, "at_most": 1}}
    result = session.result
    return {
        "verified": result.trusted,
        "simulated": result.simulated,
        "tee": result.family.value,
        "root": root_of(result),
        "model_digest": session.model_digest,
        **about,
        "replicas": {"verified": len(session.replicas), "at_most": session.most_replicas},
    }


def _joined(lines: Iterable[str | None]) -> Iterator[tuple[str, bool]]:
    """What is typed, line by line, or several lines at once between three quotation marks; and whether it is those.

    None in place of a line is an interruption, which drops what was begun.
    """
    several: list[str] | None = None
    for line in lines:
        if line is None:
            several = None
        elif several is None and not line.lstrip().startswith(_FENCE):
            yield line.strip(), False
        else:
            rest = line.lstrip().removeprefix(_FENCE) if several is None else line
            several = [*(several or ()), rest.rstrip().removesuffix(_FENCE)]
            if rest.rstrip().endswith(_FENCE):
                yield "\n".join(several).strip(), True
                several = None
    if several is not None:
        output.note(f"The last lines did not end with {_FENCE}, and were not sent.")


def open_history() -> History | None:
    """Where lines are kept, at a terminal; what stands against it is said."""
    if not sys.stdin.isatty():
        return None
    try:
        kept = History(make_home())
    except OSError as error:
        output.note(f"What you type is not kept: {error.strerror or error}.")
        return None
    output.note(f"What you type is kept in {kept.path}, for you alone; a line that begins with a space is not.")
    return kept


def typed_lines(history: History | None) -> Iterator[str | None]:
    """What is typed; None for a line that was interrupted. With the keys of a shell where Python has readline."""
    with suppress(ImportError):
        import readline  # input() uses it once it is imported

        for line in history.lines if history else ():
            readline.add_history(line)
    while True:
        try:
            line = input("\nyou> ").encode(errors="surrogateescape").decode(errors="replace")
        except EOFError:
            return
        except KeyboardInterrupt:
            output.note("Type /quit to leave.")
            yield None
            continue
        if history is not None:
            with suppress(OSError):  # a full disk is no reason not to answer
                history.add(line)
        yield line
