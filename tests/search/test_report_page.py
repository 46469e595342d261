"""The report in a browser: it opens from a file, asks nothing of anybody, and works by keyboard."""

import json
import shutil
from collections.abc import Iterator

import pytest
from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.webdriver import Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from search.report import images_of, write_report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and its driver: apt install chromium-driver"
)
ARGUMENTS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
)


@pytest.fixture(scope="module")
def browser(told_run, tmp_path_factory) -> Iterator[webdriver.Chrome]:
    """A browser that shows the page, which was written with pictures."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*ARGUMENTS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    page = tmp_path_factory.mktemp("page") / "report.html"
    write_report(told_run, images_of(told_run)[0], to=page)
    found = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        found.get(page.as_uri())
        yield found
    finally:
        found.quit()


def seen(browser: webdriver.Chrome, width: int, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def tab_to(browser: webdriver.Chrome, wanted) -> webdriver.remote.webelement.WebElement:
    """Presses the tabulator until what has the focus is `wanted`."""
    browser.execute_script("document.querySelector('.skip').focus()")
    for _ in range(60):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        if wanted(active := browser.switch_to.active_element):
            return active
    raise AssertionError("it cannot be reached by the keyboard")


def column(browser: webdriver.Chrome, index: int) -> list[float]:
    script = f"""return [...document.querySelectorAll("#policies tbody tr:not([hidden])")]
        .map(row => row.cells[{index}].dataset.value).filter(value => value !== "").map(Number)"""
    return browser.execute_script(script)


def test_it_opens_from_a_file_without_errors_or_requests(browser):
    assert browser.title.endswith("Augury report")
    assert not browser.get_log("browser")
    here = browser.current_url
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
        and message["params"]["documentURL"] == here  # a new tab of the browser asks for its own
    ]
    assert here in asked
    assert not [url for url in asked if url != here and not url.startswith("data:")]


def test_its_columns_are_sorted_by_the_keyboard(browser):
    seen(browser, 1440, "light")
    button = tab_to(browser, lambda e: e.tag_name == "button" and e.text.startswith("score"))
    heading = button.find_element(By.XPATH, "..")
    button.send_keys(Keys.ENTER)
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column(browser, 2) == sorted(column(browser, 2)) and len(set(column(browser, 2))) > 9
    button.send_keys(Keys.SPACE)
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(browser, 2) == sorted(column(browser, 2), reverse=True)
    last = browser.find_elements(By.CSS_SELECTOR, "#policies tbody tr")[-1]
    assert last.get_attribute("data-status") == "failed"  # without a number, so last in both
    assert len(browser.find_elements(By.CSS_SELECTOR, "#policies th[aria-sort]")) == 1


def test_its_rows_are_filtered_by_the_keyboard(browser):
    text = tab_to(browser, lambda e: e.get_attribute("id") == "contains")
    text.send_keys("cutmix")
    rows = browser.find_elements(By.CSS_SELECTOR, "#policies tbody tr:not([hidden])")
    assert 0 < len(rows) < 39
    assert all("cutmix" in row.text for row in rows)
    count = browser.find_element(By.ID, "count")
    assert count.text == f"{len(rows)} of 39"
    text.send_keys(Keys.CONTROL, "a")
    text.send_keys(Keys.DELETE)
    status = tab_to(browser, lambda e: e.get_attribute("id") == "status")
    status.send_keys("fail")
    assert count.text == "5 of 39"
    status.send_keys(Keys.HOME)
    assert count.text == "39 of 39"


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_axe_finds_nothing_serious(browser, width, scheme):
    seen(browser, width, scheme)
    found = Axe().run(browser)["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert not serious, json.dumps(serious, indent=1)


def test_it_fits_a_phone_and_its_figures_follow_the_light(browser):
    ink = "return getComputedStyle(document.querySelector('figure svg text')).fill"
    seen(browser, 390, "light")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    light = browser.execute_script(ink)
    seen(browser, 390, "dark")
    assert browser.execute_script(ink) != light
