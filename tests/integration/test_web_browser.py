"""The pages in a real browser: nothing that their policy forbids, nothing wider than a phone, and what scripts do."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pymongo.database import Database

from tests.lab.browser import Tab, find_chromium, open_tab
from tests.lab.flower import FlowerThread
from tests.lab.history import fill
from tests.lab.logs import make_attempt, make_log
from webhooks.models import now

Documents = Database[dict[str, Any]]

# Slow: it needs a browser, which is no package of Python, and takes its time.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed: apt-get install chromium"),
]


def browse(look: Callable[[Tab], Awaitable[None]]) -> None:
    """Do something in a browser."""

    async def run() -> None:
        async with open_tab(find_chromium() or "chromium") as tab:
            await look(tab)

    asyncio.run(run())


def find_pages(database: Documents) -> list[str]:
    log = database["webhooklogs"].find_one({"attempt.outcome": "failed"}, sort=[("createdAt", -1)])
    assert log is not None
    details = log["attempt"]
    return [
        "/webhooks",
        "/webhooks/logs",
        "/webhooks/logs?company=wrong&status=4xx",
        f"/webhooks/deliveries/{details['delivery_id']}",
        f"/webhooks/events/{details['event_id']}",
        f"/webhooks/{log['subscription']}",
        "/webhooks/events/never",
        "/webhooks/deliveries/never",
    ]


@pytest.mark.timeout(300)
def test_pages_keep_the_policy_and_fit_a_telephone(database: Documents, flower: FlowerThread):
    fill(database, 300)

    async def look(tab: Tab) -> None:
        for width, is_dark in ((400, True), (1280, False)):
            await tab.look(width, is_dark=is_dark)
            for path in find_pages(database):
                tab.complaints.clear()
                await tab.open(flower.url(path))
                wrong = [one for one in tab.complaints if "404" not in one]
                assert not wrong, (path, wrong)
                assert await tab.run("document.documentElement.scrollWidth") <= width, path
                theme = await tab.run("document.documentElement.getAttribute('data-bs-theme')")
                assert theme == ("dark" if is_dark else "light")

    browse(look)


@pytest.mark.timeout(300)
def test_list_of_logs_is_live_and_nobody_acts_without_being_asked(database: Documents, flower: FlowerThread):
    fill(database, 60)

    async def look(tab: Tab) -> None:
        await tab.look(1280)
        await tab.open(flower.url("/webhooks/logs"))
        database["webhooklogs"].insert_one(make_log("brand new", at=now(), attempt=make_attempt()).to_bson())
        await tab.wait_for("document.body.textContent.includes('brand new')")

        webhook_id = (database["webhooks"].find_one({"code": "notes"}) or {})["_id"]
        await tab.open(flower.url(f"/webhooks/{webhook_id}"))
        button = f'form[action="/webhooks/{webhook_id}/actions/pause"] button'
        assert await tab.run(f"document.querySelector('{button}').checkVisibility()") is False
        await tab.run(f"document.querySelector('{button}').closest('details').querySelector('summary').click()")
        assert await tab.run(f"document.querySelector('{button}').checkVisibility()") is True
        await tab.click(button)
        assert "The webhook is paused" in await tab.run("document.querySelector('[role=status]').textContent")

    browse(look)
    assert database["gates"].count_documents({"state": "paused", "by": "operator"}) == 2
