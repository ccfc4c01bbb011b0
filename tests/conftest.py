"""Fixtures that every test may use, and the rule that continuous integration skips nothing by accident."""

import os
import re
import shutil
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

# how long an example takes depends on what else runs: benchmarks/ is for that
settings.register_profile("ours", settings.default, deadline=None)
settings.load_profile("ours")

ROOT = Path(__file__).resolve().parent.parent
MAY_SKIP = re.compile(r"no GPU|TomoPy is not installed")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a program (mark `needs`) that is not on this machine; system folders count."""
    folders = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
    wanted = [name for mark in item.iter_markers("needs") for name in mark.args]
    missing = [name for name in wanted if shutil.which(name, path=folders) is None]
    if missing:
        pytest.skip(f"not installed on this machine: {', '.join(missing)}")


@pytest.fixture(autouse=True)
def _default_logs() -> None:
    """Undo what an earlier test told the logs: each writes to the standard output of its own test."""
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real scan and the golden recordings of upstream, which the project does not carry."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder with the real scan and the golden recordings is not beside this checkout")
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]):
    """Where MINISTREAM_TEST_NO_SKIPS is set, a skip for any reason but GPU or TomoPy is a failure."""
    report = yield
    if report.skipped and os.environ.get("MINISTREAM_TEST_NO_SKIPS") and not hasattr(report, "wasxfail"):
        reason = str(call.excinfo.value) if call.excinfo else ""
        if not MAY_SKIP.search(reason):
            report.outcome = "failed"
            report.longrepr = f"skipped where nothing may be: {reason}"
    return report
