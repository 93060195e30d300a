"""`confide rag`: make a sealed corpus of a folder of documents, and look into it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape
from rich.text import Text

from confide.cli import output
from confide.cli.on_ray import OnRay, mapped_on
from confide.cli.options import Json, OwnerFile, TrustedOwner, require_text
from confide.extras import named_extras
from confide.mapped import one_by_one
from confide.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.packages.owner import OwnerPublicKey
    from confide.packages.sealed.corpus import Chunk, CorpusManifest, Embeddings

app = typer.Typer(name="rag", help="Sealed corpora of documents, for retrieval.", no_args_is_help=True)

CorpusFolder = Annotated[Path, typer.Argument(help="The folder that `confide rag build` wrote.", metavar="CORPUS")]
CorpusKey = Annotated[Path, typer.Option(help="File of the corpus's key.")]
_SHOWN: Final = 400
"""Characters of a chunk on a terminal."""


@app.callback()
def rag() -> None:
    """Sealed corpora of documents, for retrieval."""


@app.command("build")
def build(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Documents, also in folders below: .txt, .md, .html, .pdf, .docx.",
            metavar="FOLDER",
            file_okay=False,
            exists=True,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.", metavar="CORPUS")],
    key: Annotated[Path, typer.Option(help="File of the corpus's key, 32 bytes; made where there is none.")],
    after: Annotated[
        Path | None, typer.Option(help="The corpus whose place this takes, as its next head.", metavar="CORPUS")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of a new corpus; the folder's without.")] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out, and name, documents that cannot be read.")
    ] = False,
    embedder: Annotated[
        Path | None,
        typer.Option(
            help="A sentence-transformers model: chunks are found by what they mean, too. It becomes part of the "
            "corpus, as does the next.",
            metavar="FOLDER",
        ),
    ] = None,
    reranker: Annotated[
        Path | None,
        typer.Option(help="A cross-encoder, which has the last word on the best 20 chunks.", metavar="FOLDER"),
    ] = None,
    owner: OwnerFile = None,
    ray: OnRay = None,
    json: Json = False,
) -> None:
    """Cut documents into chunks, encrypt them for a key, and sign them with a head number that only grows."""
    from confide.cli.owner import read_or_make_key
    from confide.cli.seal import read_or_make
    from confide.packages.manifest import safe_name
    from confide.packages.sealed.corpus import SealedCorpus, seal_corpus
    from confide.packages.sealed.draft import require_absent
    from confide.packages.trusted_owners import other_keys
    from confide.rag.reading import gather

    if after is not None and name is not None:
        raise typer.BadParameter("the next head keeps the name of the corpus; leave --name out")
    if ray is not None and embedder is None:
        raise typer.BadParameter("--ray goes with --embedder, whose vectors are what takes long")
    require_absent(out)
    if embedder or reranker:
        output.quiet_transformers()
    signer, corpus_key = read_or_make_key(owner), read_or_make(key)
    same = {signer.public, *other_keys(signer.public)}
    before = SealedCorpus.open(after, same) if after else None
    # Before anything that takes long: what is none is refused at once.
    reranking = _reranker_files(reranker) if reranker else None
    embed = _embedding(embedder, ray) if embedder else None
    with output.messages.status("reading") as status:
        gathered = gather(
            folder,
            skip_unreadable=skip_unreadable,
            first=_closed_off(),
            on_document=lambda document: status.update(f"[dim]reading {escape(printable(document))}[/]"),
        )
        embeddings = None
        if embed is not None:
            total = len(gathered.chunks)
            embeddings = embed(
                [chunk.text for chunk in gathered.chunks],
                lambda count: status.update(f"[dim]embedding: {count:,} of {total:,} chunks"),
            )
        manifest = seal_corpus(
            gathered.chunks,
            out,
            name=safe_name(name or folder.resolve().name),
            key=corpus_key,
            owner=signer,
            after=before,
            embeddings=embeddings,
            reranker=reranking,
        )
    if json:
        output.result({"package": str(out), **_facts(manifest, signer.public), "left_out": gathered.left_out})
        return
    for left, reason in gathered.left_out.items():
        output.note(f"Left out {left}: {reason}")
    output.console.print(
        f"Sealed {escape(manifest.name)}, head {manifest.head}: {manifest.chunks:,} chunks of "
        f"{manifest.documents:,} documents."
    )
    output.console.print(f"Head digest  {manifest.digest}   for `confide keys add`", soft_wrap=True)
    output.console.print(f"Corpus       {manifest.corpus}   for policies", soft_wrap=True)
    output.console.print(f"Corpus key   {manifest.key}   in {escape(str(key))}: keep it secret", soft_wrap=True)
    output.console.print(
        f"Signed by    {signer.public.fingerprint}; publish your key: [bold]{signer.public}[/]", soft_wrap=True
    )
    output.console.print(
        f"Next: confide rag search {escape(str(out))} QUESTION --key {escape(str(key))}", soft_wrap=True
    )


@app.command("show")
def show(
    corpus: CorpusFolder,
    key: Annotated[Path | None, typer.Option(help="File of the corpus's key: check and list all of it.")] = None,
    owner: TrustedOwner = None,
    json: Json = False,
) -> None:
    """Show what a sealed corpus is, and with its key that all of it is what its owner signed. Writes nothing."""
    from confide.packages.sealed.corpus import SealedCorpus
    from confide.packages.sealed.key import ModelKey
    from confide.packages.trusted_owners import accepted_owners

    sealed = SealedCorpus.open(corpus, accepted_owners(owner))
    chunks: tuple[Chunk, ...] = ()
    if key:
        unlocked = sealed.unlock(ModelKey.read(key))
        chunks = unlocked.chunks()
        unlocked.verify_models()
    counts: dict[str, int] = {}
    for chunk in chunks:
        counts[chunk.source] = counts.get(chunk.source, 0) + 1
    facts = _facts(sealed.manifest, sealed.owner)
    if json:
        output.result(facts | {"verified": key is not None, "sources": counts})
        return
    for fact, value in facts.items():
        output.console.print(Text(f"{fact:<10} {value}"), soft_wrap=True)
    for source, count in counts.items():
        output.console.print(Text(f"{count:>6,} chunks  {source}"), soft_wrap=True)
    output.console.print(
        "[green]Verified:[/] every chunk and every model decrypts with this key, and is what its owner signed."
        if key
        else "The signature holds and no file is missing. Their content was not checked: use --key."
    )


@app.command("search")
def search(
    corpus: CorpusFolder,
    question: Annotated[str, typer.Argument(help="In words that the documents use.")],
    key: CorpusKey,
    most: Annotated[int, typer.Option(help="Chunks to show.", min=1, max=50)] = 5,
    owner: TrustedOwner = None,
    json: Json = False,
) -> None:
    """Find the chunks that fit a question, here and now, as a retrieval service would. Writes nothing."""
    from confide.packages.sealed.corpus import SealedCorpus
    from confide.packages.sealed.key import ModelKey
    from confide.packages.trusted_owners import accepted_owners
    from confide.rag.index import Index

    require_text(question, "the question")
    sealed = SealedCorpus.open(corpus, accepted_owners(owner))
    if sealed.manifest.has_models:
        output.quiet_transformers()
    hits = Index.of(sealed.unlock(ModelKey.read(key))).search(question, most)
    if json:
        found = [_cited(hit.chunk) | {"score": hit.score, "text": hit.chunk.text} for hit in hits]
        output.result({"corpus": sealed.manifest.corpus, "head": sealed.manifest.head, "hits": found})
        return
    for hit in hits:
        place = "" if hit.chunk.page is None else f", page {hit.chunk.page}"
        heading = f"{hit.chunk.source}{place}   {hit.score:.3f}   {hit.chunk.digest[:16]}"
        output.console.print(Text(printable(heading), style="bold"), soft_wrap=True)
        text = hit.chunk.text
        output.words(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
        output.console.print("\n")
    if not hits:
        output.note("No chunk has a word of the question.")


def _embedding(folder: Path, ray: str | None) -> "Callable[[list[str], Callable[[int], None]], Embeddings]":
    """What embeds texts with the model of a folder, here or by tasks of a cluster, and tells how many are done."""
    with named_extras():
        from confide.models.encoders import Embedder, embedder_files
    from confide.packages.sealed.corpus import Embeddings

    files, model = embedder_files(folder), Embedder.load(folder)

    def embed(texts: list[str], on_text: "Callable[[int], None]") -> Embeddings:
        if ray is None:
            return Embeddings(files, model.of_documents(texts, on_text))
        with mapped_on(ray, one_by_one):
            from confide.cluster.mapping import EmbeddingBatches

            return Embeddings(files, model.of_documents(texts, on_text, EmbeddingBatches(folder)))

    return embed


def _reranker_files(folder: Path) -> dict[str, Path]:
    """The files of a re-ranker, once it is known to be one."""
    with named_extras():
        from confide.models.encoders import Reranker, reranker_files

    Reranker.load(folder).scores("a question", ["an answer"])
    return reranker_files(folder)


def _cited(chunk: "Chunk") -> dict[str, Any]:
    return {"source": chunk.source, "page": chunk.page, "digest": chunk.digest}


def _closed_off() -> "Callable[[], object] | None":
    """What the process that reads documents does first; None, which is told, where the system has no such thing."""
    from confide.enclave.confinement import close_off
    from confide.errors import EgressOpen
    from confide.rag.reader import try_out

    try:
        try_out(close_off)
    except EgressOpen as error:
        output.note(f"Documents are read by a process that could open connections and change files: {error}")
        return None
    return close_off


def _facts(manifest: "CorpusManifest", owner: "OwnerPublicKey") -> dict[str, Any]:
    return {
        "name": manifest.name,
        "corpus": manifest.corpus,
        "head": manifest.head,
        "previous": manifest.previous,
        "digest": manifest.digest,
        "root": manifest.root,
        "documents": manifest.documents,
        "chunks": manifest.chunks,
        "embedder": manifest.embedded.model_digest if manifest.embedded else "",
        "reranker": manifest.reranker.model_digest if manifest.reranker else "",
        "key": manifest.key,
        "owner": str(owner),
    }
