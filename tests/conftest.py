import datetime
import signal
import zlib
from collections.abc import Iterator

import pytest

EVERY = 3
"""Of the tests marked `long`, one in so many runs on a day; all of them with `--all`."""

MOST_SECOND_TRIES = 5
"""A run in which more tests than this passed only when tried again has failed (`--reruns`)."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all", action="store_true", help="run every test that is marked as long, not today's third"
    )


def pytest_configure() -> None:
    # A shell starts what it puts in the background deaf to Ctrl-C, and every process started from there would be.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long ones out whose day it is not. Whoever names a file or a test asks for all of it."""
    if config.getoption("--all") or any(".py" in argument for argument in config.args):
        return
    day = datetime.datetime.now(datetime.UTC).toordinal()

    def another_day(item: pytest.Item) -> bool:
        mark = item.get_closest_marker("long")
        if mark is None:
            return False
        # What shares a mesh stays together, unless the mark says otherwise.
        name = item.nodeid if mark.kwargs.get("each") else item.path.name
        return (zlib.crc32(name.encode()) + day) % EVERY != 0

    left_out = [item for item in items if another_day(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def tried_again(config: pytest.Config) -> list[pytest.TestReport]:
    """First tries that failed, of tests that were tried once more."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return list(reporter.stats.get("rerun", ())) if reporter else []


def pytest_sessionfinish(session: pytest.Session) -> None:
    """More than a few second tries are no slow moment of the machine any more."""
    if len(tried_again(session.config)) > MOST_SECOND_TRIES and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    again = tried_again(config)
    if not again:
        return
    terminalreporter.section(f"tried once more (at most {MOST_SECOND_TRIES} may be)")
    for report in again:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = crash.message.splitlines()[0] if crash else str(report.longrepr)[-200:]
        terminalreporter.write_line(f"{report.nodeid}: {why}")


@pytest.fixture(autouse=True, scope="session")
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What stage nodes of tests measure is not kept among what those of the user did."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGEMESH_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield
