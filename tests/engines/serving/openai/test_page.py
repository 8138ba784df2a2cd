"""The page at `/`, in a real browser: from a dropped picture to a drawn box, errors, keys, both themes, by keyboard."""

import json
import re
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from examples.tiny import tasks
from tests.engines.serving.openai.served import MODEL, QUESTIONS
from tests.support.browser import drop, needs_chromium, open_page, running_browser
from tests.support.serve import ROOT, running_serve

STATIC = ROOT / "engines" / "serving" / "openai" / "page" / "static"
KEY = "0123456789abcdef-page"

# Each wait ends as soon as what it waits for is there: this only bounds it, on however slow a machine.
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def browser():
    with running_browser() as running:
        yield running


def ask(page, text):
    """Type a question, send it, and wait until it is answered; returns the answer's element."""
    number = page.locator("article.answer").count()
    page.get_by_label("Your question").fill(text)
    page.keyboard.press("Enter")
    answer = page.locator("article.answer").nth(number)
    expect(answer).to_have_attribute("aria-busy", "false")
    return answer


# --- the files ----------------------------------------------------------------------------------------------------


def test_every_file_is_served_with_a_policy_that_lets_nothing_else_in(server):
    status, headers, index = server.get("/")
    assert (status, headers.get_content_type()) == (200, "text/html")
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for file in STATIC.iterdir():
        if file.name != "index.html":
            status, headers, content = server.get(f"/page/{file.name}")
            assert (status, headers.get_content_type()) == (200, kinds[file.suffix])
            assert headers["content-security-policy"] == policy
            assert headers["x-content-type-options"] == "nosniff"
            assert content == file.read_bytes()
    assert index == (STATIC / "index.html").read_bytes()
    assert server.get("/page/secret")[0] == 404
    assert server.get("/page/../app.py")[0] == 404


def test_the_files_ask_for_nothing_from_elsewhere_and_hold_no_inline_code():
    for file in STATIC.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.", text), file
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?! type=\"module\" src)", text), file


def test_the_wheel_holds_them():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folder = STATIC.parent
    package = ".".join(folder.relative_to(ROOT).parts)
    held = {path for pattern in patterns[package] for path in folder.glob(pattern)}
    assert held == set(STATIC.iterdir())
    assert (folder / "__init__.py").exists()


def test_without_the_page_its_addresses_are_not_there(bundle):
    with running_serve(bundle, "--threads", 1, "--max-context", 512, "--no-page") as server:
        assert [server.get(path)[0] for path in ("/", "/page/main.js", "/v1/models")] == [404, 404, 200]


# --- asking -------------------------------------------------------------------------------------------------------


def picture_with_one_shape():
    """A sample that asks where its only shape is, its picture, and the true box in thousandths."""
    for seed in range(100):
        sample = tasks.box(np.random.default_rng(seed))
        if len(sample.media[0].scenes[0].shapes) == 1:
            corners = [int(number) for number in re.findall(r"\d+", sample.turns[0].answer)]
            return sample.prompt, sample.media[0].scenes[0].pixels, corners
    raise AssertionError("no sample has one shape")


@needs_chromium
def test_a_dropped_picture_is_asked_about_and_the_box_of_the_answer_is_drawn_on_it(server, browser, tmp_path):
    question, picture, corners = picture_with_one_shape()
    Image.fromarray(picture).save(tmp_path / "shape.png")
    with open_page(browser, server.url) as page:
        expect(page.locator("#model")).to_have_text(MODEL)
        drop(page, tmp_path / "shape.png")
        expect(page.get_by_role("list", name="Pictures and videos to send")).to_contain_text("shape.png")
        answer = ask(page, question)
        expect(page.locator("#attachments li")).to_have_count(0)
        image = answer.locator(".drawn img")
        expect(image).to_be_visible()
        seen, drawn = page.evaluate(
            """() => [".drawn img", ".drawn .edge"].map(name => {
                const { x, y, width, height } = document.querySelector(name).getBoundingClientRect();
                return [x, y, x + width, y + height];
            })"""
        )
    width, height = seen[2] - seen[0], seen[3] - seen[1]
    found = [(drawn[i] - seen[i % 2]) / (width, height)[i % 2] * 1000 for i in range(4)]
    assert found == pytest.approx(corners, abs=60)  # of a thousand; the shape is a third of the picture


@needs_chromium
def test_a_second_turn_knows_the_first_ones_picture_and_figures_are_told(server, browser):
    marbles = next(question for question in QUESTIONS if "marbles" in str(question.images))
    video = next(question for question in QUESTIONS if question.videos)
    with open_page(browser, server.url) as page:
        drop(page, *marbles.images)
        assert ask(page, "How many blue shapes are there?").locator(".words").inner_text() == "2"
        answer = ask(page, marbles.prompt)
        assert answer.locator(".words").inner_text() == marbles.answer
        assert re.search(
            r"first word after [\d.]+ s\n.*\d+ tokens read, \d+ of them known\n2 written", answer.inner_text()
        )
        page.get_by_role("button", name="New conversation").click()
        expect(page.locator("article")).to_have_count(0)
        drop(page, *video.videos)
        assert ask(page, video.prompt).locator(".words").inner_text() == video.answer


@needs_chromium
def test_of_several_pictures_a_user_picks_the_one_to_draw_on(server, browser):
    answer = "the <|object_ref_start|>cup<|object_ref_end|><|box_start|>(100,200),(500,600)<|box_end|> there"
    chunks = [{"choices": [{"delta": {"content": piece}}]} for piece in re.findall(".{1,9}", answer)]
    events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    lamps = next(question for question in QUESTIONS if "lamp" in str(question.images))
    with open_page(browser, server.url) as page:
        page.route(
            "**/chat/completions", lambda route: route.fulfill(body=events, content_type="text/event-stream")
        )
        drop(page, *lamps.images)
        found = ask(page, "Where is the cup?")
        assert found.locator(".words").inner_text() == "the cup [1]  there"
        expect(found.locator(".drawn")).to_have_count(0)
        found.get_by_role("button", name="Picture 2, lamp-2.png").click()
        expect(found.get_by_role("img", name="lamp-2.png with 1 place marked")).to_be_visible()
        expect(found.locator(".tag")).to_have_text("1 cup")
        expect(found.locator("figcaption")).to_have_text(
            "1: cup, box at 10 % across, 20 % down to 50 % across, 60 % down"
        )


@needs_chromium
def test_a_stopped_answer_stays_and_its_slot_is_free_at_once(server, browser):
    def lengthened(route):
        # More answers than slots, each long: whatever the machine does, they are not over when the first word comes.
        body = {**route.request.post_data_json, "ignore_eos": True, "max_tokens": 400, "n": 16}
        route.continue_(post_data=json.dumps(body))

    before = metric(server, "qv_requests_cancelled_total")
    with open_page(browser, server.url) as page:
        page.route("**/chat/completions", lengthened)
        page.evaluate(
            """() => new MutationObserver(() => {
                if (document.querySelector(".answer .words")?.textContent) document.getElementById("stop").click();
            }).observe(document.getElementById("conversation"), { childList: true, subtree: true })"""
        )
        page.get_by_label("Your question").fill("Hello")
        page.keyboard.press("Enter")
        answer = page.locator("article.answer")
        expect(answer).to_have_attribute("aria-busy", "false")
        expect(answer.locator(".facts")).to_contain_text("stopped")
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        until = time.monotonic() + 10
        while metric(server, "qv_slots_used") and time.monotonic() < until:
            time.sleep(0.05)
        assert metric(server, "qv_requests_cancelled_total") > before
        assert metric(server, "qv_slots_used") == 0


def metric(server, name):
    [value] = re.findall(rf"^{name}{{.*}} (.*)$", server.get("/metrics")[2].decode(), re.MULTILINE)
    return float(value)


@needs_chromium
def test_errors_are_told_where_they_arise_and_can_be_tried_again(server, browser, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with open_page(browser, server.url) as page:
        drop(page, tmp_path / "notes.txt")
        expect(page.locator("#refused")).to_have_text("Neither a picture nor a video: notes.txt.")
        page.get_by_role("button", name="Send").click()
        expect(page.locator("#refused")).to_have_text("Write a question first.")
        drop(page, tmp_path / "broken.png")
        answer = ask(page, "What is it?")
        expect(answer.get_by_role("alert")).to_contain_text("picture")
        expect(page.locator("#refused")).to_be_hidden()
        page.route("**/chat/completions", lambda route: route.abort())
        answer.get_by_role("button", name="Try again").click()
        expect(page.locator("article.answer .problem")).to_contain_text("cannot be reached")
        expect(page.locator("#state")).to_have_class("state gone")
        page.unroute("**/chat/completions")
        assert ask(page, "Hello").get_by_role("alert").count() == 0  # what failed is no part of the talk


@needs_chromium
def test_a_key_is_asked_for_and_kept_in_memory_alone(bundle, browser, tmp_path):
    file = tmp_path / "keys"
    file.write_text(KEY + "\n")
    with (
        running_serve(bundle, "--threads", 1, "--max-context", 512, "--api-key-file", file) as server,
        open_page(browser, server.url) as page,
    ):
        field = page.get_by_label("API key")
        expect(field).to_be_focused()
        expect(page.locator("#refused")).to_contain_text("API key")
        page.keyboard.type(KEY)
        page.keyboard.press("Tab")
        expect(page.locator("#state")).to_have_class("state ready")
        assert ask(page, "Hello").get_by_role("alert").count() == 0
        kept = page.evaluate("[document.cookie, localStorage.length, sessionStorage.length]")
        assert kept == ["", 0, 0]
        page.reload()
        expect(field).to_have_value("")


# --- who reads it, and how ----------------------------------------------------------------------------------------

CONTRASTS = (ROOT / "tests" / "support" / "contrasts.js").read_text()


@needs_chromium
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_has_the_contrast_of_level_aa(server, browser, tmp_path, theme):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with open_page(browser, server.url, theme) as page:
        expect(page.locator("#state")).to_have_class("state ready")
        texts = page.evaluate(CONTRASTS)
        drop(page, *QUESTIONS[0].images)
        ask(page, QUESTIONS[0].prompt)
        drop(page, tmp_path / "broken.png")
        ask(page, "What?")
        drop(page, *QUESTIONS[0].images)
        page.get_by_role("button", name="Settings").click()
        page.get_by_role("button", name="Send").click()
        texts += page.evaluate(CONTRASTS)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert {"Send", "Try again", "Temperature", "Write a question first."} <= {text for text, _ in texts}
    assert [(text, ratio) for text, ratio in texts if ratio < 4.5] == []
    assert (sum(map(int, re.findall(r"\d+", ground))) > 384) == (theme == "light")


@needs_chromium
def test_all_of_it_can_be_reached_by_keyboard_and_has_a_name(server, browser):
    with open_page(browser, server.url) as page:
        expect(page.locator("#state")).to_have_class("state ready")
        expect(page.get_by_label("Your question")).to_be_focused()
        drop(page, *QUESTIONS[0].images)
        page.get_by_role("button", name="Settings").press("Enter")
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("button, input, textarea, img, video")].filter(one =>
                one.checkVisibility() && !one.ariaLabel && !one.alt && !one.textContent.trim() && !one.labels?.length
            ).map(one => one.outerHTML)"""
        )
        assert nameless == []
        page.get_by_role("button", name="New conversation").focus()
        reached = []
        for _ in range(10):
            reached.append(page.evaluate("document.activeElement.ariaLabel || document.activeElement.id"))
            ring = page.evaluate(
                """[document.activeElement, document.activeElement.parentElement]
                    .map(one => getComputedStyle(one).outlineStyle)"""
            )
            assert "solid" in ring, reached
            page.keyboard.press("Tab")
    assert reached == [
        *("new", "show-settings", "system", "max-tokens", "temperature", "key"),
        *("Remove gate.png", "Add pictures or videos", "Your question", "send"),
    ]


@needs_chromium
def test_a_screen_reader_hears_that_it_is_answered_and_the_whole_answer_once(server, browser):
    question = QUESTIONS[0]
    with open_page(browser, server.url) as page:
        page.evaluate(
            """() => {
                window.heard = [];
                new MutationObserver(() => heard.push(document.querySelector("[role=status]").textContent))
                    .observe(document.querySelector("[role=status]"), { childList: true });
            }"""
        )
        drop(page, *question.images)
        ask(page, question.prompt)
        heard = [text for text in page.evaluate("heard") if text]
        assert heard == ["1 to send", "Answering", f"Answer: {question.answer}"]
        assert (
            page.locator("[aria-live], [role=log]").count() == 0
        )  # a growing text read piece by piece is noise


@needs_chromium
@pytest.mark.parametrize("width", [320, 1400])
def test_nothing_is_wider_than_the_window(server, browser, width):
    with open_page(browser, server.url, width=width) as page:
        drop(page, *QUESTIONS[0].images)
        page.get_by_role("button", name="Settings").click()
        ask(page, "What does the text say? " + "x" * 300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_browser_is_installed_where_ci_runs():
    assert "chromium" in (ROOT / ".ci" / "run").read_text()
    assert Path(STATIC / "main.js").exists()
