"""`confide fetch` as a person or a script runs it."""

import json
from pathlib import Path

import pytest
from tests.objects import storage

from confide.packages.sealed.data import SealedData, seal_data
from confide.packages.sealed.key import ModelKey
from owners import OWNER, STRANGER

from .command import run

KEY = ModelKey(b"k" * 32)


def test_a_package_is_fetched_from_object_storage_and_refused_where_its_owner_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal_data(b'{"a": 1}', tmp_path / "data", key=KEY, owner=OWNER)
    with storage(tmp_path / "data", monkeypatch) as stored:
        where = ("--endpoint", stored.endpoint)
        done = run("fetch", stored.address, tmp_path / "out", *where, "--owner", OWNER.public, "--json")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert (said["kind"], said["owner"], said["files"]) == ("sealed-data", str(OWNER.public), 1)
        assert SealedData.open(tmp_path / "out").read(KEY) == b'{"a": 1}'
        shown = run("fetch", stored.address, tmp_path / "again", *where)
        assert "a sealed-data: 1 files" in shown.stdout
        assert OWNER.public.fingerprint in shown.stdout
        refused = run("fetch", stored.address, tmp_path / "no", *where, "--owner", STRANGER.public, "--json")
        assert json.loads(refused.stdout)["error"]["code"] == "untrusted-owner"
        wrong = run("fetch", stored.address, tmp_path / "no", *where, "--groups", "0-3", "--json")
        assert json.loads(wrong.stdout)["error"]["code"] == "invalid-package"
