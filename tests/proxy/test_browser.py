"""The page in a browser: what people do with it, what a hostile model does to it, and what it may not do itself."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.client.workload import MODEL, FakeWorkload, serving, simulated
from tests.proxy.browser import answers, ask, asked_by, chromium, look, opened, until
from tests.proxy.local import proxied, settled
from tests.proxy.test_workload import DIGEST, Place

from confide.cli.demo.tampering import damage_evidence, tampering_relay
from confide.proxy.workload import WorkloadAddress, WorkloadBackend

LONG = "x" * 4000
SIZES = {"large": (1360, 850), "medium": (1000, 760), "small": (390, 780)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeWorkload]:
    folder = tmp_path_factory.mktemp("workload")
    with serving(simulated(folder / "tee", model_digest=DIGEST)) as fake:
        yield fake


@pytest.fixture(scope="module")
def root(fake: FakeWorkload, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return next(tmp_path_factory.getbasetemp().glob("workload*/tee/root.pem"))


@pytest.fixture(scope="module")
def url(fake: FakeWorkload, root: Path) -> Iterator[str]:
    """A proxy of two models: one that is what it says, and the same through somebody who changes its evidence."""
    with tampering_relay(fake.url, {"/attestation": damage_evidence}) as relay:

        def backends() -> list[WorkloadBackend]:
            address = WorkloadAddress(relay, simulated_root=root)
            return [Place(fake, root).backend(MODEL), WorkloadBackend("tampered", address, 3600)]

        with proxied(backends) as url:
            settled(url, "ready")
            yield url


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    with opened(browser, url) as page:
        yield page


def prompts(fake: FakeWorkload) -> list[Any]:
    return [json.loads(body)["messages"] for path, body in fake.prompts if path == "/v1/chat/completions"]


# -- asking -----------------------------------------------------------------------------------------------------


def test_an_answer_comes_piece_by_piece_and_is_kept(page: Any, fake: FakeWorkload) -> None:
    question = "?siht si tahw " * 40
    page.fill("#question", question)
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.writing .body')?.textContent.length > 20")
    partial = page.inner_text(".writing .body")
    assert page.get_attribute(".message.assistant", "aria-busy") == "true"
    page.wait_for_selector(".message.assistant .foot button")
    assert answers(page) == [question.strip()[::-1]]
    assert len(partial) < len(question)
    assert page.get_attribute(".message.assistant", "aria-busy") is None
    assert page.evaluate("document.activeElement.id") == "question"
    assert page.inner_text("#live").startswith(
        question.strip()[::-1][:50]
    )  # a screen reader is told once, when it is there
    assert prompts(fake)[-1] == [{"role": "user", "content": question.strip()}]
    page.reload()
    page.wait_for_selector("body[data-begun]")
    assert answers(page) == [question.strip()[::-1]]
    assert "token" not in page.url


def test_it_can_be_stopped_and_the_workload_stops_as_well(page: Any, fake: FakeWorkload) -> None:
    for stop in (lambda: page.click("#stop"), lambda: page.keyboard.press("Escape")):
        fake.stopped.clear()
        page.fill("#question", LONG)
        page.keyboard.press("Enter")
        until(page, "document.querySelector('.writing .body')?.textContent.length > 5")
        stop()
        page.wait_for_selector(".message:last-child .note")
        assert page.inner_text(".message:last-child .note") == "You stopped this answer."
        assert fake.stopped.wait(60)
        assert 5 < len(answers(page)[-1]) < len(LONG)


def test_a_question_is_edited_and_an_answer_asked_for_again(page: Any, fake: FakeWorkload) -> None:
    ask(page, "eno")
    ask(page, "owt")
    asked_by(lambda: page.click(".message:last-child button[aria-label^='Ask again']"), page, fake)
    assert page.locator(".message").count() == 4
    turns = [("user", "eno"), ("assistant", "one"), ("user", "owt")]
    assert [(turn["role"], turn["content"]) for turn in prompts(fake)[-1]] == turns
    # What came after it would be lost, so that is asked first; here both times.
    page.click(".message >> nth=0 >> button[aria-label='Edit this question']")
    page.fill(".edit textarea", "eerht")
    page.keyboard.press("Enter")
    page.click("#confirm button:not(.danger)")
    assert len(answers(page)) == 2
    page.click(".edit button[type=submit]")
    asked_by(lambda: page.click("#confirm-yes"), page, fake)
    assert page.locator(".message").count() == 2
    assert answers(page) == ["three"]
    assert prompts(fake)[-1] == [{"role": "user", "content": "eerht"}]
    page.reload()
    page.wait_for_selector("body[data-begun]")
    assert answers(page) == ["three"]


def test_several_conversations_with_their_own_system_prompts_are_in_the_browser_alone(
    page: Any, fake: FakeWorkload, confide_home: Path
) -> None:
    before = sorted(confide_home.rglob("*"))
    ask(page, "first")
    page.keyboard.press("Alt+n")
    page.click("#settings-open")
    page.fill("#system", "Answer backwards.")
    page.fill("#rename", "Backwards")
    page.click("#settings button[type=submit]")
    ask(page, "second")
    assert [turn["role"] for turn in prompts(fake)[-1]] == ["system", "user"]
    assert page.locator(".conversation").all_inner_texts() == ["Backwards", "first"]
    page.click(".conversation >> text=first")
    until(page, "document.querySelector('.user .body').textContent === 'first'")
    assert answers(page) == ["tsrif"]
    page.click("#settings-open")
    page.click("#delete")
    page.click("#confirm-yes")
    until(page, "document.querySelectorAll('.conversation').length === 1")
    page.click("#forget-all")
    page.click("#confirm-yes")
    until(page, "document.querySelectorAll('.conversation').length === 0")
    page.reload()
    page.wait_for_selector("body[data-begun]")
    assert page.locator(".conversation").count() == 0
    assert sorted(confide_home.rglob("*")) == before


def test_an_answer_goes_on_while_another_conversation_is_read(page: Any) -> None:
    ask(page, "before")
    page.keyboard.press("Alt+n")
    question = "0123456789" * 40
    page.fill("#question", question)
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.writing .body')?.textContent.length > 5")
    page.click(".conversation >> text=before")
    until(page, "document.querySelector('.assistant .body').textContent === 'erofeb'")
    page.click(".conversation >> nth=0")
    page.wait_for_selector(".message.assistant .foot button")
    assert answers(page) == [question[::-1]]


def test_conversations_are_exported(page: Any) -> None:
    ask(page, "eciN")
    page.click("#settings-open")
    with page.expect_download() as found:
        page.click("#export-json")
    exported = json.loads(Path(found.value.path()).read_text())
    assert found.value.suggested_filename == "eciN.json"
    assert [(one["role"], one["content"]) for one in exported["messages"]] == [("user", "eciN"), ("assistant", "Nice")]
    assert exported["messages"][1]["protection"] == "SIMULATED, not protected"
    with page.expect_download() as found:
        page.click("#export-markdown")
    assert "## You\n\neciN\n\n## reverser (SIMULATED, not protected)\n\nNice\n" in Path(found.value.path()).read_text()


def test_code_is_copied(browser: Any, url: str) -> None:
    with opened(browser, url, permissions=["clipboard-read", "clipboard-write"]) as page:
        ask(page, "```sh\nls -l | wc\n```"[::-1])
        page.click(".code .copy")
        page.wait_for_selector(".copy >> text=Copied")
        assert page.evaluate("navigator.clipboard.readText()") == "ls -l | wc"


def test_errors_of_the_model_are_shown_and_left_out_of_what_is_sent(page: Any, fake: FakeWorkload) -> None:
    ask(page, "busy")
    assert "It does not work." in page.inner_text(".problem")
    assert page.locator(".problem.refused").count() == 0
    ask(page, "next")
    assert prompts(fake)[-1] == [{"role": "user", "content": "next"}]


def test_a_conversation_that_is_too_long_is_asked_for_with_half_of_it(page: Any, fake: FakeWorkload) -> None:
    ask(page, "one")
    ask(page, "too long")
    asked_by(lambda: page.click("text=Retry with half of it"), page, fake)
    assert [turn["content"] for turn in prompts(fake)[-2]] == ["one", "eno", "too long"]
    assert [turn["content"] for turn in prompts(fake)[-1]] == ["too long"]
    assert page.inner_text("#window") == "The model is sent the last 1 of 3 messages."


def test_an_answer_that_is_cut_does_not_look_whole(page: Any, fake: FakeWorkload) -> None:
    fake.alter = lambda frames: frames[:4]
    try:
        ask(page, "abcdefgh")
    finally:
        fake.alter = lambda frames: frames
    assert page.inner_text(".problem strong") == "No answer"
    assert answers(page) == ["hgf"]


# -- who is trusted -----------------------------------------------------------------------------------------------


def test_what_is_simulated_is_unmistakable(page: Any) -> None:
    page.wait_for_selector("body[data-tone=simulated]")
    assert page.inner_text("#strip") == "Simulated: nothing is protected"
    assert "Nothing is protected" in page.inner_text("#verdict")
    red, green, blue = page.evaluate(
        "getComputedStyle(document.querySelector('#verdict')).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert red > 3 * max(green, blue)
    ask(page, "x")
    assert page.inner_text(".by") == "reverser · SIMULATED, not protected"


def test_each_line_of_the_panel_is_explained(page: Any) -> None:
    page.wait_for_selector(".line[data-line=trust]")
    lines = page.locator(".line").evaluate_all("all => all.map((one) => one.dataset.line)")
    assert lines == [
        "mode",
        "family",
        "measurements",
        "model",
        "engine",
        "policy",
        "checks",
        "receipts",
        "age",
        "runs",
        "replicas",
        "server",
        "trust",
    ]
    for line in lines:
        page.click(f".line[data-line={line}] summary")
        assert len(page.inner_text(f".line[data-line={line}] > p")) > 40
    assert DIGEST in page.inner_text(".line[data-line=model] dl")
    assert "any code on such hardware is trusted" in page.inner_text(".line[data-line=policy] dl")
    look(page)  # what is open stays open
    page.wait_for_timeout(100)
    assert page.locator(".line[open]").count() == len(lines)


def test_a_tampered_server_is_refused_and_sent_nothing(page: Any, fake: FakeWorkload) -> None:
    page.wait_for_selector("#refusal:not([hidden])")
    before = len(fake.prompts)
    page.click("#show-refusal")
    page.wait_for_selector(".problem.refused")
    assert page.inner_text(".problem strong") == "Refused. Nothing was sent."
    assert page.inner_text(".problem code") == "attestation-refused"
    assert page.get_attribute(".problem", "role") == "alert"
    assert page.get_attribute("body", "data-tone") == "refused"
    assert page.locator(".assistant .body").inner_text() == ""
    assert len(fake.prompts) == before
    page.select_option("#model", MODEL)
    ask(page, "ko")
    assert answers(page)[-1] == "ok"


def hybrid() -> dict[str, Any]:
    return {
        "models": ["small"],
        "state": "ready",
        "mode": "hybrid",
        "url": "wss://layers.example",
        "trust": "prompt: seen by you",
        "bytes_up": 1234567,
        "bytes_ahead": 1000,
        "bytes_down": 99,
        "round_trips": 7,
        "last_sent": "00ff" * 8,
        "lengths": {"prompt": 5, "visible_prompt": 16, "answer": 9, "visible_answer": 16},
        "tokens_ready": 64,
        "layer_groups": 4,
        "bits_per_token": 65536,
        "disclosed": 0.0123,
        "kept_tokens": 0,
        "runs": {"engine": "confide", "quantization": "int8"},
    }


def verified() -> dict[str, Any]:
    return {
        "models": ["big"],
        "state": "ready",
        "mode": "enclave",
        "url": "https://models.example",
        "family": "tdx",
        "simulated": False,
        "root": "Intel",
        "verified_at": "2026-01-01T00:00:00+00:00",
        "age_seconds": 61,
        "measurements": {"tdx mrtd": "cd" * 48},
        "model_digest": DIGEST,
        "trust": "prompt: seen by you",
        "checks": [{"code": "debug", "outcome": "pass", "expected": "off", "seen": "off"}],
        "policy": {"asks": ["debugging off"], "leaves_open": [], "exceptions": []},
        "replicas": {
            "at_most": 4,
            "verified": [{"channel_key": f"{n}f" * 32, "verified_at": "2026-01-01T00:00:00+00:00"} for n in (1, 2)],
            "refused": ["The workload is not trusted."],
        },
        "runs": {
            "confide": "1",
            "engine": "llama.cpp 7",
            "quantization": "q8_0",
            "dtype": "f32",
            "weights_digest": "ef" * 32,
            "context": 4096,
            "adapters": [],
            "egress": "none",
            "upstream": "",
            "self_test": "passed",
        },
    }


def told(page: Any, *backends: dict[str, Any]) -> None:
    """Have the proxy say this from now on."""
    page.route("**/confide/status", lambda route: route.fulfill(json={"backends": list(backends)}))
    look(page)


def lines(page: Any) -> dict[str, str]:
    """What the panel says, by the names of its lines."""
    return dict(
        page.locator(".line").evaluate_all(
            "all => all.map((one) => [one.dataset.line, one.querySelector('.value').textContent])"
        )
    )


def test_what_is_verified_and_what_is_encrypted_say_so(page: Any) -> None:
    told(
        page,
        verified(),
        hybrid(),
        {**verified(), "url": "https://other.example", "state": "unreachable", "reason": "It is off."},
    )
    page.wait_for_selector("body[data-tone=verified]")
    values = lines(page)
    assert values["family"] == "Intel TDX"
    assert values["engine"] == "llama.cpp 7"
    assert values["quantization"] == "q8_0"
    assert values["age"] == "1 minute ago"
    assert values["replicas"] == "1 of 2 ready; 2 of at most 4 verified"
    told_of = page.text_content(".line[data-line=replicas] dl")
    assert "key 1f1f1f1f1f1f1f1f…" in told_of
    assert "The workload is not trusted." in told_of
    assert values["runs"] == "No way out"
    page.select_option("#model", "small")
    page.wait_for_selector(".line[data-line=last]")
    values = lines(page)
    assert values["last"] == "00 ff 00 ff 00 ff 00 ff …"
    assert values["bytes"] == "1.2 MB up, 99 B down"
    assert values["pool"] == "64 tokens"
    assert values["disclosed"] == "1.23 %"
    assert values["lengths"] == "16 and 16 seen"
    assert "family" not in values


@pytest.mark.parametrize("state", ["refused", "verifying", "unreachable"])
def test_nothing_that_was_verified_before_is_shown_once_it_does_not_hold(page: Any, state: str) -> None:
    told(page, {**verified(), "state": state, "reason": "The checks failed."})
    until(page, "!document.querySelector('[data-line=family]')")
    assert page.get_attribute("body", "data-tone") in ("refused", "waiting", "away")
    assert "Nothing is sent" in page.inner_text("#verdict")
    assert "Verified" not in page.inner_text("#verdict")


def test_a_server_s_own_words_stay_words(page: Any) -> None:
    evil = "<img src=x onerror=alert(1)>"
    odd = {
        **verified(),
        "root": evil,
        "measurements": {evil: evil},
        "url": evil,
        "models": [evil],
        "trust": f"{evil}: {evil}",
    }
    told(page, odd)
    page.wait_for_selector(".line[data-line=trust]")
    assert page.locator("img, .line dl *:not(div, dt, dd)").count() == 0
    assert evil in page.inner_text(".line[data-line=server] .value")


def test_without_its_token_the_page_is_empty(browser: Any, url: str) -> None:
    for token in ("", "wrong"):
        with opened(browser, url, token=token) as page:
            page.wait_for_selector("#locked")
            assert page.evaluate("document.querySelector('#main').inert")
            assert "reverser" not in page.content()
            assert page.evaluate("fetch('/confide/status').then((answer) => answer.status)") == 401
            assert page.evaluate("fetch('/v1/models').then((answer) => answer.status)") == 401
            page.goto(f"{url}/#token=page-token")  # the right address, in the same tab
            page.wait_for_selector("#locked", state="hidden")
            page.wait_for_selector("body[data-tone=simulated]")


def test_it_goes_on_after_proxy_and_server_were_started_again(browser: Any, fake: FakeWorkload, root: Path) -> None:
    with ExitStack() as stack:
        proxy = stack.enter_context(ExitStack())
        url = proxy.enter_context(proxied(lambda: [Place(fake, root).backend()]))
        settled(url, "ready")
        with opened(browser, url) as page:
            page.wait_for_selector("body[data-tone=simulated]")
            ask(page, "before")
            fake.restart()
            ask(page, "between")
            proxy.close()
            look(page)
            page.wait_for_selector("body[data-tone=away]")
            ask(page, "nobody")
            assert "Start it again with confide proxy" in page.inner_text(".problem")
            port = int(url.rpartition(":")[2])
            stack.enter_context(proxied(lambda: [Place(fake, root).backend()], port=port))
            settled(url, "ready")
            look(page)
            page.wait_for_selector("body[data-tone=simulated]")
            asked_by(lambda: page.click("text=Retry >> nth=-1"), page, fake)
            assert page.locator(".problem").count() == 0
            assert answers(page) == ["erofeb", "neewteb", "ydobon"]


# -- many messages ------------------------------------------------------------------------------------------------

FILL = """async (count) => {
  const { Store } = await import("/page/store.js");
  const store = await Store.open();
  const id = crypto.randomUUID();
  await store.saveConversation({ id, title: "Long", system: "", model: "reverser", created: 1, changed: Date.now() });
  await store.saveMessages(Array.from({ length: count }, (_, place) => ({
    id: crypto.randomUUID(), conversation: id, place, at: 1, role: place % 2 ? "assistant" : "user",
    text: `Message **${place}** of many, with some words in it.`, state: "whole", model: "reverser",
  })));
}"""
TIMED = """async () => {
  const before = performance.now();
  const question = document.querySelector("#question");
  question.value = "dlrow olleh";
  document.querySelector("#send").click();
  await new Promise((done, failed) => {
    setTimeout(() => failed(new Error("no answer came")), 20000);
    new MutationObserver((_, watcher) => {
      const last = document.querySelector(".message.assistant:last-child .foot button");
      const body = last?.closest(".message").querySelector(".body");
      if (body?.textContent === "hello world") { watcher.disconnect(); done(); }
    }).observe(document.querySelector("#messages"), { childList: true, subtree: true });
  });
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - before;
}"""


@pytest.mark.slow
def test_after_5000_messages_the_next_one_is_as_quick_as_the_first(page: Any, fake: FakeWorkload) -> None:
    first = min(page.evaluate(TIMED) for _ in range(3))
    page.evaluate(FILL, 5000)
    page.reload()
    page.wait_for_selector("body[data-begun]")
    assert page.locator(".message").count() == 40
    assert page.inner_text("#earlier") == "Show earlier messages (4,960)"
    later = min(page.evaluate(TIMED) for _ in range(3))
    print(f"the first {first:.0f} ms, after 5,000 messages {later:.0f} ms")  # noqa: T201
    assert page.locator(".message").count() < 160
    assert len(prompts(fake)[-1]) <= 512
    # Anything that grew with the conversation would be a hundred times slower; a busy machine is not.
    assert later < 10 * first + 500
    page.click("#earlier")
    until(page, "document.querySelectorAll('.message').length === 86")
    assert page.inner_text("#window") == "The model is sent the last 511 of 5,005 messages."


# -- what a hostile model writes ------------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<iframe src=javascript:alert(1)>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](<java\nscript:alert(1)>)",
    "[x](&#106;avascript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](vbscript:msgbox(1))",
    "[x](blob:https://a/b)",
    "[x](file:///etc/passwd)",
    "[x](//evil.example)",
    "[x](/v1/models)",
    "[x](\\x01javascript:alert(1))",
    "[x]( javascript:alert(1))",
    "<javascript:alert(1)>",
    '<https://a.example/"onmouseover=alert(1)>',
    "![x](https://evil.example/pixel.gif)",
    "![x](data:image/svg+xml,<svg onload=alert(1)>)",
    "[![x](https://a.example)](javascript:alert(1))",
    "![x](javascript:alert(1))",
    '[a](https://ok.example "t\\" onclick=alert(1)")',
    "`<b>`",
    "```<script>\nalert(1)\n```",
    '```"><script>\nx\n```',
    "| <script> | <b> |\n|--|--|\n| <img src=x> | [x](javascript:1) |",
    "> <style>*{display:none}</style>",
    "- [ ] <input onfocus=alert(1) autofocus>",
    "# <a href=javascript:alert(1)>x</a>",
    "https://a.example/<script>",
    "http://",
    "https://[",
    "[x](https://%zz)",
    "[x](http:a)",
    "\\[x](javascript:alert(1))",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<math><mtext></p><style><img src onerror=alert(1)>",
    "[__proto__](https://ok.example)",
    "\u202etxt.exe",
    "\x00\x1b[2J",
]


def heavy(size: int) -> list[str]:
    """Texts of some multiple of this size that a careless reader of Markdown takes the square of it for."""
    runs = "".join("`" * count + "x" for count in range(1, int((2 * size) ** 0.5)))
    brackets, images = "[" * size + "[a](b)" * (size // 4), "![" * size + "](a)" * size
    emphasis = [
        "*" * size,
        "*a " * size,
        "**a*" * size,
        "_a_*" * size,
        "***a***" * size,
        "*_" * size + "a" + "_*" * size,
    ]
    links = ["[" * size, images, brackets, "[x](y)" * size, "[a](" * size, "[a](" + "(" * size, "[a](<" * size]
    links += ["[](" + "a" * size, "[](a 'b" * size, "https://" * size, "https://a" + ")" * size, "<https://" * size]
    lists = ["> " * size + "x", "- " * size + "x", "1. " * size, "- a\n" * size, ("> " * 15 + "- a\n") * (size // 8)]
    tables = [
        "|" * size + "\n" + "|-" * size,
        "a|\n" * size,
        "a|b\n---" + " " * size + "x",
        "---" + " " * size + "x\n---",
    ]
    others = ["`" * size, runs, "```\n" * size, "#" * size, "# " + " #" * size, "&amp" * size, "\\" * size, "\n" * size]
    return [*emphasis, *links, *lists, *tables, *others, "~~a" * size, "  " * size + "- x"]


DRAW = """async (texts) => {
  const { draw, Growing } = await import("/page/markdown.js");
  const found = new Set();
  let deepest = 0;
  for (const text of texts) {
    const box = document.createElement("div");
    box.append(draw(text));
    const grown = document.createElement("div");
    const growing = new Growing(grown);
    const step = Math.ceil(text.length / 7) || 1;
    for (let at = 0; at < text.length; at += step) growing.add(text.slice(at, at + step));
    growing.end();
    for (const element of [...box.querySelectorAll("*"), ...grown.querySelectorAll("*")]) {
      const names = element.getAttributeNames().sort().join(" ");
      found.add(`${element.localName} ${names}`.trim());
      if (element.localName === "a") found.add(`to ${new URL(element.getAttribute("href")).protocol} ${element.rel}`);
    }
    const walker = document.createTreeWalker(box, NodeFilter.SHOW_ELEMENT);
    let node = box;
    let depth = 0;
    for (node = walker.firstChild(); node; ) {
      deepest = Math.max(deepest, ++depth);
      let next = walker.firstChild();
      while (!next && node) {
        depth -= 1;
        next = walker.nextSibling();
        if (!next) node = walker.parentNode();
      }
      node = next;
    }
    if (box.textContent.includes("undefined")) found.add("undefined");
  }
  return [[...found].sort(), deepest];
}"""
ALLOWED = {
    "a class href rel target title",
    "a href rel target title",
    "blockquote",
    "br",
    "button aria-label class type",
    "code",
    "del",
    "div aria-label class role tabindex",
    "div class",
    "em",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "li class",
    "li",
    "ol",
    "ol start",
    "p",
    "pre aria-label role tabindex",
    "span",
    "span aria-label class role",
    "span class",
    "strong",
    "table",
    "tbody",
    "td class",
    "th class scope",
    "thead",
    "tr",
    "ul",
    "to http: noopener noreferrer nofollow",
    "to https: noopener noreferrer nofollow",
    "to mailto: noopener noreferrer nofollow",
}


def test_what_a_hostile_model_writes_is_text_and_nothing_else(page: Any, url: str) -> None:
    elements, _ = page.evaluate(DRAW, HOSTILE)
    assert set(elements) <= ALLOWED
    ask(page, "\n\n".join(HOSTILE[:12])[::-1].replace("\x00", ""))
    assert page.locator(".message script, .message img, .message iframe, .message svg").count() == 0
    assert page.url == url + "/"


def test_what_is_meant_to_be_too_much_stays_shallow_and_plain(page: Any) -> None:
    elements, deepest = page.evaluate(DRAW, heavy(200))
    assert set(elements) <= ALLOWED
    assert deepest < 100


TIMES = """async (texts) => {
  const { draw } = await import("/page/markdown.js");
  return texts.map((text) => {
    const before = performance.now();
    draw(text);
    return performance.now() - before;
  });
}"""


@pytest.mark.slow
def test_the_time_that_a_text_takes_grows_as_the_text(page: Any) -> None:
    page.evaluate(TIMES, heavy(500))  # compiled from here on
    less, more = (page.evaluate(TIMES, heavy(size)) for size in (2500, 20_000))
    # Eight times the text: what takes its square takes 64 times as long.
    slow = [text[:20] for text, one, other in zip(heavy(8), less, more, strict=True) if other > 25 * one + 250]
    assert slow == []


MARKDOWN = {
    "a *b* **c** ***d*** ~~e~~": "<p>a <em>b</em> <strong>c</strong> <em><strong>d</strong></em> <del>e</del></p>",
    "2 * 3 * 4, snake_case_name, **not": "<p>2 * 3 * 4, snake_case_name, **not</p>",
    "**a *b* c** *x **y***": "<p><strong>a <em>b</em> c</strong> <em>x <strong>y</strong></em></p>",
    "a\nb": "<p>a<br>b</p>",
    "``a ` b`` \\*c\\* &lt;": "<p><code>a ` b</code> *c* &lt;</p>",
    "# A #\n## B": "<h3>A</h3><h4>B</h4>",
    "- a\n  - b\n- c": "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>",
    "3. a\n\n4. b": '<ol start="3"><li><p>a</p></li><li><p>b</p></li></ol>',
    "- [x] a": '<ul><li class="task"><span>☑</span> a</li></ul>',
    "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
    "a\n\n***\n\nb": "<p>a</p><hr><p>b</p>",
    "[a](https://a.example/x_(y))": '<p><a href="https://a.example/x_(y)">a</a> (a.example)</p>',
    "See https://a.example/b. Or (https://c.example)": (
        '<p>See <a href="https://a.example/b">https://a.example/b</a>. Or '
        '(<a href="https://c.example/">https://c.example</a>)</p>'
    ),
    "![cat](https://a.example/c.png)": '<p><a href="https://a.example/c.png">Image, not loaded: cat</a></p>',
    "a | b\n--|:-:\n1 | `x\\|y`": (
        "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td><code>x|y</code></td></tr></tbody></table>"
    ),
    "```py\na\n\n  b\n```": "<pre><code>a\n\n  b</code></pre>",
    "1. a\n   ```\n   b\n   ```\n2. c": "<ol><li>a<pre><code>b</code></pre></li><li>c</li></ol>",
}
PLAIN = """async (texts) => {
  const { draw, Growing } = await import("/page/markdown.js");
  const plain = (box) => {
    for (const one of box.querySelectorAll(".code-head")) one.remove();
    for (const one of box.querySelectorAll(".host")) one.replaceWith(one.textContent);
    for (const one of box.querySelectorAll(".code, .table")) one.replaceWith(...one.childNodes);
    for (const one of box.querySelectorAll("*")) {
      const dropped = one.getAttributeNames().filter((name) => !["href", "start"].includes(name));
      for (const name of one.className === "task" ? [] : dropped) one.removeAttribute(name);
    }
    return box.innerHTML;
  };
  return texts.map((text) => {
    const whole = document.createElement("div");
    whole.append(draw(text));
    const grown = document.createElement("div");
    const growing = new Growing(grown);
    for (const letter of text) growing.add(letter);
    growing.end();
    return [plain(whole), plain(grown)];
  });
}"""


def test_markdown_is_drawn_as_it_is_meant_whole_and_as_it_grows(page: Any) -> None:
    for (text, expected), (whole, grown) in zip(MARKDOWN.items(), page.evaluate(PLAIN, list(MARKDOWN)), strict=True):
        assert whole == expected, text
        assert grown == expected, text


# -- for everybody --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        ("large", "light"),
        pytest.param("small", "dark", marks=pytest.mark.slow),
        pytest.param("large", "dark", marks=pytest.mark.slow),
        pytest.param("medium", "light", marks=pytest.mark.slow),
        pytest.param("medium", "dark", marks=pytest.mark.slow),
        pytest.param("small", "light", marks=pytest.mark.slow),
    ],
)
def test_axe_finds_nothing(browser: Any, url: str, size: str, scheme: str) -> None:
    from axe_playwright_python.base import AXE_FILE_PATH  # MPL-2.0: for tests, and in no wheel of ours

    width, height = SIZES[size]
    script = Path(AXE_FILE_PATH).read_text()
    # axe makes elements from markup, which the page's own policy does not allow anybody.
    with opened(
        browser, url, viewport={"width": width, "height": height}, color_scheme=scheme, bypass_csp=True
    ) as page:

        def examine(where: str, *, all_of_it: bool = True) -> None:
            page.evaluate(script)
            found = page.evaluate("axe.run().then((found) => found.violations)")
            if not all_of_it:  # a drawer lies over the rest, which is as good as not there
                found = [one for one in found if one["impact"] in ("serious", "critical")]
            worst = [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found]
            assert worst == [], where

        page.wait_for_selector("body[data-tone=simulated]")
        examine("empty")
        ask(page, "# A\n\n- [x] b\n- `c`\n\n```py\nx = 1\n```\n\na|b\n-|-\n1|[2](https://a.example)\n\n> d"[::-1])
        page.click("#settings-open")
        examine("dialog")
        page.keyboard.press("Escape")
        if page.locator("#menu").is_visible():
            page.click("#menu")
            examine("conversations", all_of_it=False)
            page.keyboard.press("Escape")
            assert page.evaluate("document.activeElement.id") == "menu"
        narrow = page.locator("#show-panel").is_visible()
        if narrow:
            page.click("#show-panel")
        page.click(".line[data-line=policy] summary")
        examine("panel", all_of_it=not narrow)
        page.click("#show-refusal")
        page.wait_for_selector(".problem.refused")
        examine("refused")
        told(page, verified())
        page.wait_for_selector("body[data-tone=verified]")
        examine("verified")


def test_all_of_it_works_by_keyboard(page: Any) -> None:
    page.evaluate("document.body.tabIndex = -1, document.body.focus()")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("ih")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("!")
    page.keyboard.press("Enter")
    page.wait_for_selector(".message.assistant .foot button")
    assert answers(page) == ["!\nhi"]
    page.focus(".line[data-line=policy] summary")
    page.keyboard.press("Enter")
    assert page.locator(".line[data-line=policy][open]").count() == 1
