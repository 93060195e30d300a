"""Embedders and re-rankers: that they compute what their folders say, and that what is none is refused by name."""

import asyncio
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from confide.enclave.engines.transformers_engine import TransformersEngine
from confide.errors import EngineFault, ModelNotSupported
from confide.models.encoders import Embedder, Reranker, embedder_files, reranker_files
from confide.models.source import DEMO_FOLDER, open_model
from confide.packages.sealed.corpus import Chunk, Embeddings, SealedCorpus, seal_corpus
from confide.packages.sealed.key import ModelKey
from confide.rag.index import Index
from owners import OWNER

from .encoders import describe, save_embedder, save_reranker

KEY = ModelKey(b"k" * 32)
LONG = "tide " * 100


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_embedder(tmp_path_factory.mktemp("models") / "embedder")


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reranker(tmp_path_factory.mktemp("models") / "reranker")


@pytest.fixture
def folder(embedder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(embedder, tmp_path / "embedder"))


def states(folder: Path, ids: list[int]) -> torch.Tensor:
    """The last hidden states of one text, by the model itself."""
    with torch.inference_mode():
        return BertModel.from_pretrained(folder).eval()(input_ids=torch.tensor([ids])).last_hidden_state[0]


def unit(vector: torch.Tensor) -> np.ndarray:
    return (vector / vector.norm()).numpy()


def test_a_vector_is_the_mean_over_all_tokens_but_padding(embedder: Path) -> None:
    model = Embedder.load(embedder)
    short = unit(states(embedder, [2, 5, 3]).mean(0))
    np.testing.assert_allclose(model.of_question("Tide"), short, atol=1e-6)
    vectors = model.of_documents(["the tide rises", "tide", "moon", "the tide falls"])
    np.testing.assert_allclose(vectors[1], short, atol=1e-6)  # beside longer ones
    np.testing.assert_allclose(vectors[2], unit(states(embedder, [2, 8, 3]).mean(0)), atol=1e-6)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, model.dimensions) == (4, 16)


@pytest.mark.parametrize(("pooling", "place"), [("cls_token", 0), ("lasttoken", -1)])
def test_a_vector_is_the_state_of_the_first_or_of_the_last_token(tmp_path: Path, pooling: str, place: int) -> None:
    model = Embedder.load(save_embedder(tmp_path, pooling))
    [vector, _] = model.of_documents(["tide", "the tide rises"])
    np.testing.assert_allclose(vector, unit(states(tmp_path, [2, 5, 3])[place]), atol=1e-6)


def test_a_newer_folder_says_its_pooling_in_one_word(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    np.testing.assert_allclose(Embedder.load(folder).of_question("tide"), unit(states(folder, [2, 5, 3])[0]), atol=1e-6)


def test_questions_and_documents_have_what_the_model_wants_before_them(folder: Path) -> None:
    plain = Embedder.load(folder)
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "query: "}}))
    model = Embedder.load(folder)
    np.testing.assert_array_equal(model.of_question("tide"), plain.of_question("query: tide"))
    np.testing.assert_array_equal(model.of_documents(["tide"]), plain.of_documents(["tide"]))
    describe(folder, "mean_tokens", include_prompt=False)
    with pytest.raises(ModelNotSupported, match="prompts out of the pooling"):
        Embedder.load(folder)


def test_a_long_text_is_read_as_far_as_the_model_goes(folder: Path) -> None:
    whole = Embedder.load(folder)
    np.testing.assert_array_equal(whole.of_question(LONG), whole.of_question("tide " * 22))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 4}')
    model = Embedder.load(folder)
    np.testing.assert_array_equal(model.of_question(LONG), model.of_question("tide tide"))


def test_threads_do_not_disturb_each_other(embedder: Path, reranker: Path) -> None:
    """transformers' own tokenizers say "Already borrowed" here."""
    model, scorer = Embedder.load(embedder), Reranker.load(reranker)
    texts = ["tide", "the tide rises", LONG, "moon"] * 10
    with ThreadPoolExecutor(8) as pool:
        vectors = list(pool.map(model.of_question, texts))
        scores = list(pool.map(lambda text: scorer.scores("tide", [text])[0], texts))
    for text, vector, score in zip(texts[:4], vectors[-4:], scores[-4:], strict=True):
        np.testing.assert_array_equal(vector, model.of_question(text))
        assert [score] == scorer.scores("tide", [text])


def test_a_causal_models_mean_is_what_its_engine_embeds(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO_FOLDER, tmp_path / "demo"))
    describe(folder, "mean_tokens")
    texts = ["The tide rises twice a day.", "Bread"]

    source = open_model(str(folder))

    async def by_engine() -> list[list[float]]:
        engine = TransformersEngine(source.load_model(), source.load_tokenizer(), "demo")
        try:
            return await engine.embed(texts)
        finally:
            await engine.close()

    np.testing.assert_allclose(Embedder.load(folder).of_documents(texts), asyncio.run(by_engine()), atol=1e-5)


def test_texts_are_scored_by_what_reads_them_with_the_question(reranker: Path) -> None:
    scorer = Reranker.load(reranker)
    texts = ["moon", "the tide rises", LONG, "bread"]
    scores = scorer.scores("the tide", texts)
    assert all(0 < score < 1 for score in scores)
    assert len(set(scores)) == 4
    for text, score in zip(texts, scores, strict=True):
        assert scorer.scores("the tide", [text]) == pytest.approx([score])
    assert scorer.scores("moon", texts) != scores
    assert scorer.scores("moon", []) == []


def test_what_a_folder_is_loaded_from_is_what_is_sealed(folder: Path, reranker: Path, tmp_path: Path) -> None:
    """And nothing else of it: a copy of these files computes the same."""
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 4}')
    (folder / "modeling.py").write_text("raise SystemExit")
    for name, files in (("embedder", embedder_files(folder)), ("reranker", reranker_files(reranker))):
        assert not any(path.endswith(".py") for path in files)
        for path, source in files.items():
            target = tmp_path / "copies" / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    copies = tmp_path / "copies"
    np.testing.assert_array_equal(
        Embedder.load(copies / "embedder").of_question(LONG), Embedder.load(folder).of_question(LONG)
    )
    assert Reranker.load(copies / "reranker").scores("tide", ["moon"]) == Reranker.load(reranker).scores(
        "tide", ["moon"]
    )


def test_a_corpus_is_searched_with_the_models_that_were_sealed_with_it(
    embedder: Path, reranker: Path, tmp_path: Path
) -> None:
    """From memory: of the folders that they came from nothing is read, and nothing is in the clear on disk."""
    texts = ["the tide rises", "the moon", "bread"]
    chunks = [Chunk("a.txt", None, text) for text in texts]
    model = Embedder.load(embedder)
    seal = partial(seal_corpus, chunks, name="sea", key=KEY, owner=OWNER)
    embeddings = Embeddings(embedder_files(embedder), model.of_documents(texts))
    seal(out=tmp_path / "1", embeddings=embeddings, reranker=reranker_files(reranker))
    index = Index.of(SealedCorpus.open(tmp_path / "1").unlock(KEY))
    scores = Reranker.load(reranker).scores("falls", texts)
    assert [hit.score for hit in index.search("falls", 3)] == pytest.approx(sorted(scores, reverse=True))
    seal(out=tmp_path / "2", embeddings=embeddings)
    index = Index.of(SealedCorpus.open(tmp_path / "2").unlock(KEY))
    near = np.argsort(-model.cosines("falls", embeddings.vectors))
    by_hand = embeddings.vectors @ model.of_question("falls")
    np.testing.assert_allclose(model.cosines("falls", embeddings.vectors), by_hand, atol=1e-6)
    assert [hit.place for hit in index.search("falls", 3)] == list(near)  # none has the word
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    weights = (embedder / "model.safetensors").read_bytes()[-64:]
    assert not any(secret in content for content in written for secret in (weights, b"tide", b"mean_tokens"))


def test_vectors_of_another_model_are_not_compared(embedder: Path, tmp_path: Path) -> None:
    embeddings = Embeddings(embedder_files(embedder), np.eye(1, 4, dtype=np.float32))
    seal_corpus([Chunk("a", None, "b")], tmp_path / "1", name="sea", key=KEY, owner=OWNER, embeddings=embeddings)
    with pytest.raises(ModelNotSupported, match="vectors of 16 numbers, and those of the chunks have 4"):
        Index.of(SealedCorpus.open(tmp_path / "1").unlock(KEY))


@pytest.mark.parametrize(
    ("pooling", "said"),
    [("max_tokens", "by max_tokens"), ("none", "by nothing")],
)
def test_another_pooling_is_refused_by_its_name(tmp_path: Path, pooling: str, said: str) -> None:
    describe(tmp_path, pooling)
    with pytest.raises(ModelNotSupported, match=said):
        embedder_files(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (
            "modules.json",
            '[{"type": "models.Transformer"}, {"type": "models.Pooling"}, {"type": "models.Dense"}]',
            "Dense",
        ),
        ("modules.json", '[{"type": "m.StaticEmbedding"}]', "StaticEmbedding"),
        ("modules.json", '[{"type": "m.Transformer"}, {"type": "m.Pooling", "path": "../../etc"}]', "writes"),
        ("modules.json", '[{"type": "m.Transformer"}, {"type": "m.Pooling"}]', "unusual places"),
        ("modules.json", "[" * 100_000, "writes"),
        ("modules.json", '["\\u001b[2J"]', "writes"),
        ("1_Pooling/config.json", "[]", "writes"),
        ("config.json", "{}", "no model"),
        ("config.json", '{"model_type": "t5"}', "writes texts"),
        ("config.json", '{"model_type": "bert", "quantization_config": {"quant_method": "gptq"}}', "quantized"),
    ],
    ids=["dense", "static", "path", "place", "deep", "controls", "pooling", "config", "generates", "quantized"],
)
def test_what_is_no_embedder_is_refused_by_what_it_is(folder: Path, file: str, content: str, said: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(ModelNotSupported, match=said) as raised:
        Embedder.load(folder)
    assert "\x1b" not in str(raised.value)


def test_a_language_model_is_no_embedder_and_no_reranker(tmp_path: Path) -> None:
    with pytest.raises(ModelNotSupported, match=r"has no modules\.json"):
        Embedder.load(DEMO_FOLDER)
    with pytest.raises(ModelNotSupported, match="GPT2LMHeadModel, which is no re-ranker"):
        Reranker.load(DEMO_FOLDER)


def test_a_classifier_of_several_classes_is_no_reranker(tmp_path: Path) -> None:
    with pytest.raises(ModelNotSupported, match="into 3 classes"):
        Reranker.load(save_reranker(tmp_path, labels=3))


def test_weights_that_are_missing_or_no_numbers_are_not_made_up(folder: Path, reranker: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    save_file({**weights, name: weights[name] * float("nan")}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelNotSupported, match="not all finite"):
        Embedder.load(folder)
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelNotSupported, match="missing"):
        Embedder.load(folder)
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelNotSupported, match="cannot load"):
        Embedder.load(folder)
    headless = Path(shutil.copytree(reranker, tmp_path / "headless"))
    weights = {
        key: value for key, value in load_file(headless / "model.safetensors").items() if "classifier" not in key
    }
    save_file(weights, headless / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelNotSupported, match="classifier"):
        Reranker.load(headless)


def test_a_model_without_a_tokenizer_is_refused(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ModelNotSupported, match="tokenizer"):
        Embedder.load(folder)


def test_a_model_that_fails_says_so_without_the_text(embedder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Embedder.load(embedder)

    def failing(model: BertModel, **inputs: object) -> None:
        raise RuntimeError("the tide")

    monkeypatch.setattr(BertModel, "forward", failing)
    with pytest.raises(EngineFault, match="RuntimeError") as raised:
        model.of_question("the tide")
    assert "tide" not in str(raised.value)
