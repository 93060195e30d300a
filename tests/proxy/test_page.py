"""The page's files over HTTP: who gets them, with which headers, and that they are all there is."""

import re
from collections.abc import Iterator
from importlib.resources import files

import httpx
import pytest
from tests.proxy.local import PAGE, proxied
from tests.proxy.test_gate import Echo

from confide.errors import ProxyNotRunning
from confide.proxy.page.page import address, is_file
from confide.proxy.running import PAGE_TOKEN_NAME, page_token

STATIC = files("confide.proxy.page") / "static"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with proxied(lambda: [Echo("echo", 3600)], keys=("key",)) as url:
        yield url


def get(url: str, path: str, **headers: str) -> httpx.Response:
    return httpx.get(url + path, headers=headers, trust_env=False)


def test_the_files_are_the_same_for_everybody(url: str) -> None:
    for name in ("index.html", *(entry.name for entry in STATIC.iterdir())):
        answer = get(url, f"/page/{name}")
        assert answer.status_code == 200
        assert answer.content == (STATIC / name).read_bytes()
    assert get(url, "/").content == (STATIC / "index.html").read_bytes()


@pytest.mark.parametrize("path", ["/", "/page/main.js", "/page/nothing"])
def test_the_browser_is_held_to_what_the_page_needs(url: str, path: str) -> None:
    headers = get(url, path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert "unsafe" not in headers["content-security-policy"]
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["trusted-types"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert "set-cookie" not in headers


@pytest.mark.parametrize("path", ["/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fpage.py", "/page//etc/passwd"])
def test_nothing_else_is_a_file(url: str, path: str) -> None:
    assert get(url, path).status_code in (401, 404)


def test_pages_of_others_do_not_frame_or_fetch_it(url: str) -> None:
    assert get(url, "/", **{"sec-fetch-site": "cross-site"}).status_code == 403
    assert get(url, "/page/main.js", **{"sec-fetch-site": "same-site"}).status_code == 403
    assert get(url, "/", host="evil.example").status_code == 403


def test_only_the_files_are_open() -> None:
    assert is_file("/")
    assert is_file("/page/main.js")
    assert not any(map(is_file, ("/v1/models", "/confide/status", "/health", "/pages", "/page", "//")))


def test_nothing_is_loaded_from_elsewhere_and_nothing_is_markup() -> None:
    for entry in STATIC.iterdir():
        text = entry.read_text()
        assert not re.search(r"""(?:src|href|url\(|import|from)\s*[=(]?\s*["']?(?:https?:)?//(?!www\.w3\.org)""", text)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
        assert not re.search(r"<script(?![^>]*src=)|\sstyle=|\son\w+=\"", text)


def test_the_page_s_token_stands_for_the_key(url: str) -> None:
    for token, status in ((PAGE, 200), ("other", 401)):
        for kind in ({}, {"origin": url, "sec-fetch-site": "same-origin"}):
            answer = get(url, "/confide/status", authorization=f"Bearer {token}", **kind)
            assert answer.status_code == status


def test_it_stops_no_proxy(url: str) -> None:
    answer = httpx.post(f"{url}/confide/stop", headers={"authorization": f"Bearer {PAGE}"}, trust_env=False)
    assert answer.status_code == 400


def test_the_token_stays_where_browsers_keep_it_and_is_the_same_next_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    token = page_token()
    assert page_token() == token
    assert len(token) == 43
    assert address("http://127.0.0.1:1", token) == f"http://127.0.0.1:1/#token={token}"
    path = tmp_path / "home" / PAGE_TOKEN_NAME
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(ProxyNotRunning, match="not yours alone"):
        page_token()
    path.unlink()
    assert page_token() != token
    path.write_text("short")
    with pytest.raises(ProxyNotRunning, match="no token"):
        page_token()
