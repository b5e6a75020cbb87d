"""The playground in a browser: a chat, a comparison, who proposed what, and texts that try to be markup."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.processes.browser import Visit, browsing
from support.processes.served import listening, toy, wait_for
from support.toys.toy_pipeline import ToyTokenizer, greedy

from specport.pipeline import Pipeline

# What the toy model's tokens stand for where it writes markup.
MARKUP = [
    '<img src="/x" onerror="document.title=\'owned\'">', "<script>document.title='owned'</script>", "&lt;",
    "</div>", '"', "<b>", "\u202e", "{{7*7}}", "javascript:", "\n", " ",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as found:
        yield found


def number(page: Any, name: str) -> float:
    """Return a figure of the panel."""
    return float(page.locator(f"#{name}").inner_text().split()[0])


def test_a_chat_shows_the_answer_and_who_proposed_its_tokens(browser: Any) -> None:
    with listening(toy()) as (url, service):
        visit = Visit(browser, url)
        page = visit.page
        page.get_by_text("Settings").click()
        page.get_by_label("Most tokens").fill("60")
        page.keyboard.press("Escape")
        visit.send("abc")
        answer = page.locator(".answer .text")
        wanted = greedy("abc", 60)
        assert answer.inner_text().startswith(wanted)
        metrics = service.pipeline.generate("abc", max_new_tokens=60).metrics
        proposed = answer.locator(".piece[title='proposed by ngram']")
        assert proposed.count() == metrics.num_accepted_tokens > 0  # a letter is a token
        assert page.locator("#strip g > g").count() == metrics.num_steps
        assert page.locator("#strip rect.hollow").count() == (
            metrics.num_draft_tokens - metrics.num_accepted_tokens
        )
        cells = page.locator("#drafters tbody tr").inner_text().split()
        assert cells == ["ngram", *map(str, (metrics.num_drafts, metrics.num_draft_tokens,
                                             metrics.num_accepted_tokens))]  # fmt: skip
        assert number(page, "rate") == round(100 * metrics.acceptance_rate)
        assert number(page, "speed") > 0 and number(page, "first") >= 0
        assert "60 tokens" in page.get_by_role("status").inner_text()
        visit.send("de")  # the conversation goes on: with all that was said before
        assert page.locator(".answer .text").last.inner_text().startswith(greedy(f"abc{wanted}de", 60))
        page.get_by_role("button", name="New chat").click()
        assert page.locator(".answer").count() == 0
        visit.close()


def test_plain_and_speculative_are_compared(browser: Any) -> None:
    with listening(toy(step_seconds=0.002)) as (url, _):
        visit = Visit(browser, url, viewport={"width": 380, "height": 700}, color_scheme="dark")
        page = visit.page
        page.get_by_label("Compare").check(force=True)
        visit.send("abcabc")
        verdict = page.locator(".verdict").inner_text()
        assert verdict.startswith("The texts are equal.") and "tokens a second" in verdict
        columns = page.locator(".columns section")
        texts = [columns.nth(i).locator(".text") for i in range(2)]
        assert [each.inner_text() for each in texts] == [greedy("abcabc", 256)] * 2
        assert texts[0].locator(".piece").count() > 0 and texts[1].locator(".piece").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # on a phone
        page.get_by_text("Settings").click()
        page.get_by_label("Temperature").fill("1.5")
        page.keyboard.press("Escape")
        visit.send("abcabc")
        assert re.match(r"The texts differ\..* by chance", page.locator(".verdict").last.inner_text())
        visit.close()


def test_stop_ends_the_sequence_on_the_server(browser: Any) -> None:
    with listening(toy(drafts=False, step_seconds=0.02)) as (url, service):
        visit = Visit(browser, url)
        page = visit.page
        page.get_by_label("Message").fill("abc")
        page.get_by_role("button", name="Send").click()
        wait_for(lambda: len(page.locator(".answer .text").inner_text()) > 5)
        assert service.pipeline.engine.num_unfinished == 1
        page.get_by_role("button", name="Stop").click()
        wait_for(lambda: not service.pipeline.engine.num_unfinished, 5)
        visit.wait()
        text = page.locator(".answer .text").inner_text()
        assert text.endswith("stopped") and len(text) < 200
        assert "nothing drafted" in page.locator(".answer .figures").inner_text()
        visit.close()


def test_what_a_model_writes_is_text(browser: Any) -> None:
    class Tokenizer(ToyTokenizer):
        def token_bytes(self, token: int) -> bytes:
            return MARKUP[token].encode()

    engine = toy().engine
    with listening(Pipeline(engine, Tokenizer(), model_name="toy")) as (url, _):
        visit = Visit(browser, url)
        page = visit.page
        page.get_by_text("Settings").click()
        page.get_by_label("Temperature").fill("2")  # so that it writes every token
        page.keyboard.press("Escape")
        visit.send("<img src=/y onerror=\"document.title='owned'\">")
        text = page.locator(".answer .text").text_content()
        assert all(each in text for each in MARKUP)
        assert page.locator("#messages img, #messages script, #messages b").count() == 0
        assert page.locator(".user").inner_text().startswith("<img")
        page.get_by_label("Compare").check(force=True)
        visit.send("abc")
        assert any(each in page.locator(".verdict + *, .columns").text_content() for each in MARKUP[:2])
        assert page.locator("#messages img, #messages script, #messages b").count() == 0
        assert page.title().startswith("tiny")
        visit.close()


def test_the_policy_lets_no_other_script_run(browser: Any) -> None:
    with listening(toy()) as (url, _):
        visit = Visit(browser, url)
        visit.page.evaluate(
            """() => {
                const script = document.createElement("script");
                script.textContent = "document.title = 'owned'";
                const image = document.createElement("img");
                image.setAttribute("onerror", "document.title = 'owned'");
                image.src = "http://elsewhere.invalid/";
                document.body.append(script, image);
            }"""
        )
        wait_for(lambda: visit.page.title() and len(visit.faults) >= 2)
        assert all("Content Security Policy" in each for each in visit.faults)
        assert "owned" not in visit.page.title()
        visit.page.close()


def test_a_key_is_asked_for_where_one_is_needed(browser: Any) -> None:
    with listening(toy(), keys=["secret"]) as (url, _):
        visit = Visit(browser, url)
        page, key = visit.page, visit.page.get_by_label("API key")
        key.wait_for()  # the page asks once its first request was refused
        for given, told in (("wrong", "locked"), ("secret", "tiny")):
            key.fill(given)
            key.press("Tab")
            wait_for(lambda told=told: page.locator("#model").inner_text().startswith(told))
            page.get_by_role("alert").wait_for(state="visible" if given == "wrong" else "hidden")
        page.keyboard.press("Escape")
        visit.send("abc")
        assert page.locator(".answer .text").inner_text().startswith(greedy("abc", 9))
        assert page.evaluate("[localStorage.length, document.cookie, sessionStorage.length]") == [0, "", 1]
        # The browser itself notes each refusal.
        visit.faults = [each for each in visit.faults if "401" not in each]
        visit.close()


def test_the_page_can_be_left_out() -> None:
    with listening(toy(), page=False) as (url, _):
        reply = httpx.get(f"{url}/")
        assert reply.status_code == 404 and reply.json()["error"]["type"] == "not_found_error"
    with listening(toy()) as (url, _):
        reply = httpx.get(f"{url}/")
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        files = re.findall(r'(?:href|src)="([^"]+)"', reply.text)
        assert len(files) >= 4
        for file in files:
            found = httpx.get(f"{url}/{file}")
            assert found.status_code == 200 and found.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in found.headers["content-security-policy"]
        assert httpx.head(f"{url}/").status_code == 200
