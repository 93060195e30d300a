"""Client and server as two processes: what they compute, and what the server was given."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tenseal import sealapi

from confide.attention.circuit import STAGES
from confide.attention.ckks import CkksContext
from confide.attention.client import AttentionClient
from confide.attention.keys import EvaluationKeys, SecretKey
from confide.attention.plan import Plan
from confide.attention.server import AttentionServer
from confide.attention.twin import twin
from confide.attention.weights import AttentionWeights
from confide.errors import InvalidActivation, InvalidPackage, MalformedMessage, ModelMismatch, OutsideCalibration

from .blocks import Block, block


@pytest.fixture(scope="module")
def small() -> Block:
    return block()


@pytest.fixture(scope="module")
def client(small) -> AttentionClient:
    return AttentionClient(small.plan)


@pytest.fixture(scope="module")
def keys(client, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    client.save_evaluation_keys(folder)
    return folder


@pytest.fixture(scope="module")
def server(small, keys) -> AttentionServer:
    return AttentionServer(small.plan, small.weights, keys, workers=1)


def serve(plan: bytes, heads: int, qkv, bias, keys: Path, message: bytes, answer: Path) -> None:
    """The server's process. These arguments are all it gets."""
    server = AttentionServer(Plan.from_json(plan), AttentionWeights(heads, qkv, bias), keys, workers=2)
    stages = []
    answer.write_bytes(server.evaluate(message, lambda stage, done, total: stages.append((stage, done, total))))
    assert stages == [(stage, done, len(STAGES)) for done, stage in enumerate([*STAGES, "done"])]


@pytest.mark.slow
def test_another_process_computes_what_the_twin_does(small, client, keys, tmp_path):
    x = small.input()
    message, weights = client.encrypt(x), small.weights
    arguments = (small.plan.to_json(), weights.heads, weights.qkv, weights.qkv_bias, keys, message, tmp_path / "answer")
    process = multiprocessing.get_context("spawn").Process(target=serve, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0
    result = client.decrypt((tmp_path / "answer").read_bytes(), len(x))
    expected = twin(x, small.plaintexts)
    assert result.in_range
    assert np.abs(result.context - expected.context).max() < 1e-3
    assert result.largest_score == pytest.approx(expected.largest_score, abs=1e-3)
    assert result.largest_sum == pytest.approx(expected.largest_sum, abs=1e-3)


def held_by(ours: object) -> Iterator[object]:
    """All that an object of ours keeps, and what that keeps."""
    for value in vars(ours).values():
        yield value
        if type(value).__module__.startswith("confide."):
            yield from held_by(value)


def test_the_server_is_given_no_secret_key(client, server, keys, small):
    context = CkksContext.create(small.plan.parameters).context
    given = [path.read_bytes() for path in keys.iterdir()] + [client.encrypt(small.input())]
    assert len(given) == 3
    for number, content in enumerate(given):
        path = keys.parent / f"given{number}"
        path.write_bytes(content)
        with pytest.raises((RuntimeError, ValueError)):
            sealapi.SecretKey().load(context, str(path))
    # The same attempt succeeds on a real one, so that its failure above says something.
    secret = keys.parent / "secret"
    sealapi.KeyGenerator(context).secret_key().save(str(secret))
    sealapi.SecretKey().load(context, str(secret))
    held = list(held_by(server))
    assert any(isinstance(it, sealapi.GaloisKeys) for it in held)
    assert not any(isinstance(it, sealapi.SecretKey | sealapi.KeyGenerator | sealapi.Decryptor) for it in held)
    assert not hasattr(SecretKey, "save")


def test_the_client_sees_that_a_range_was_left(small, client, server):
    x = 4 * small.input()
    result = client.decrypt(server.evaluate(client.encrypt(x)), len(x))
    assert not result.in_range
    assert result.largest_score == pytest.approx(twin(x, small.plaintexts).largest_score, abs=1e-2)
    with pytest.raises(OutsideCalibration):
        result.require_in_range()


def test_an_input_whose_scores_could_wrap_is_not_encrypted(small, client):
    x = small.input()
    with pytest.raises(InvalidActivation, match="norm"):
        client.encrypt(x * 1.01 * small.plan.largest_norm / np.linalg.norm(x, axis=1).max())


def test_encryption_is_randomised(small, client):
    x = small.input()
    assert client.encrypt(x) != client.encrypt(x)


def test_what_is_not_a_message_is_refused(small, client, server):
    for message in (b"", b"hello", client.encrypt(small.input())[:-100]):
        with pytest.raises(MalformedMessage):
            server.evaluate(message)
    with pytest.raises(MalformedMessage):
        client.decrypt(b"\x80", 4)
    low = server.evaluate(client.encrypt(small.input()))
    with pytest.raises(MalformedMessage):
        server.evaluate(low)


def test_keys_must_be_those_of_the_plan(small, tmp_path):
    with pytest.raises(InvalidPackage):
        EvaluationKeys.load(CkksContext.create(small.plan.parameters), tmp_path)
    with pytest.raises(ModelMismatch):
        AttentionServer(small.plan, block(heads=1).weights, tmp_path)


def test_secrets_have_no_representation(small):
    secret = SecretKey.generate(CkksContext.create(small.plan.parameters))
    assert "generator" not in repr(secret).lower()
