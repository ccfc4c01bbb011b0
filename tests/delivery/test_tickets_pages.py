"""The pages in a real browser: somebody registers, asks, watches and fetches; an operator cancels and tries again."""

import shutil

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.delivery.ticket_service import PASSWORD, contents, ticket_service

pytestmark = pytest.mark.needs("chromium")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    options = "--licence", "1 day", "--space", "3MB", "--spare", 0
    with ticket_service(tmp_path_factory.mktemp("pages"), *options) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(browser, service):
    context = browser.new_context(base_url=service.url, accept_downloads=True)
    page = context.new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda message: page.faults.append(message.text) if "Security Policy" in message.text else None)
    page.on(
        "request",
        lambda request: None if request.url.startswith((service.url, "data:")) else page.faults.append(request.url),
    )
    yield page
    context.close()
    assert page.faults == []


def enter(page: Page, name: str, button: str) -> None:
    page.get_by_label("name", exact=True).fill(name)
    page.get_by_label("password").fill(PASSWORD)
    page.get_by_role("button", name=button).click()
    expect(page.locator("#who")).to_contain_text(name)


def test_somebody_registers_asks_watches_and_fetches(page, service):
    content = service.write("scan <b>1<b>.h5", 1_000_000)
    page.goto("/")
    enter(page, "grace", "Register")
    page.get_by_label("Files").fill("scan*.h5")
    page.get_by_role("button", name="Ask").click()
    fetch = page.get_by_role("button", name="Fetch")
    expect(fetch).to_be_visible(timeout=30_000)
    with page.expect_download() as download:
        fetch.click()
    assert list(contents(download.value.path().read_bytes()).values()) == [content]
    page.reload()
    expect(page.locator("#who")).to_contain_text("grace")
    expect(page.locator("#tickets tr")).to_have_count(1)
    page.get_by_label("Files").fill("nothing.h5")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("status")).to_contain_text("nothing.h5")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#tickets tr")).to_contain_text("cancelled by grace")
    page.get_by_role("button", name="Log out").click()
    expect(page.locator("#tickets tr")).to_have_count(0)


def test_an_operator_sees_the_queue_cancels_and_tries_again(page, service):
    service.client().post("/register", json={"name": "root", "password": PASSWORD}).raise_for_status()
    service.operator.patch("/people/root", json={"role": "operator"}).raise_for_status()
    for name in ("a.h5", "b.h5"):
        service.write(name, 2_000_000)
    first = service.ask("a.h5")
    service.until(first, "ready")
    second = service.ask("b.h5")
    page.goto("/queue")
    enter(page, "root", "Log in")
    line = page.locator(f"#waiting tr[data-ticket='{second}']")
    line.get_by_role("button", name="Cancel").click()
    over = page.locator(f"#done tr[data-ticket='{second}']")
    expect(over).to_contain_text("cancelled by root")
    over.get_by_role("button", name="Retry").click()
    expect(line).to_contain_text("tried again by root")
    page.locator(f"#done tr[data-ticket='{first}']").get_by_role("button", name="Cancel").click()
    expect(over).to_contain_text("ready", timeout=30_000)
