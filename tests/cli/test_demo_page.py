"""`confide demo page`: three models behind one page, of which one is refused."""

import json
import subprocess
import sys
import time

import httpx
import pytest


@pytest.mark.slow
def test_the_demo_s_page_has_one_of_each() -> None:
    command = [sys.executable, "-m", "confide", "demo", "page", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as demo:
        try:
            assert demo.stdout is not None
            said = json.loads(demo.stdout.readline())
            url, _, token = said["page"].partition("/#token=")
            assert url == said["url"]
            headers = {"authorization": f"Bearer {token}"}
            deadline = time.monotonic() + 120
            while True:
                backends = httpx.get(f"{url}/confide/status", headers=headers, trust_env=False).json()["backends"]
                if all(one["state"] != "verifying" for one in backends):
                    break
                assert time.monotonic() < deadline
                time.sleep(0.2)
        finally:
            demo.terminate()
            demo.wait(60)
    assert {one["models"][0]: (one["state"], one["mode"]) for one in backends} == {
        "fairy tales": ("ready", "enclave"),
        "fairy tales, encrypted": ("ready", "hybrid"),
        "fairy tales, tampered with": ("refused", "enclave"),
    }
