"""How a command starts and ends: under the host's Python where it needs one, and with a sentence where it fails."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from host.process import HostError, run_in_host, say
from host.setup import ensure_host

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOSTED = "--hosted"
Options = TypeVar("Options")


def run_command(main: Callable[[], int]) -> None:
    """Run a command's ``main`` and exit with its status.

    HostError ends it with its message and status 1, Ctrl-C with one line and status 130.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that children are ended too
    try:
        sys.exit(main())
    except HostError as error:
        say(f"\n{error}")
        sys.exit(1)
    except KeyboardInterrupt:
        say("\nStopped.")
        sys.exit(130)


def hosted(
    read_options: Callable[[], Options],
    work: Callable[[Options], int],
    before: Callable[[Options], Sequence[str]] = lambda _: (),
) -> int:
    """Do a command's work under the host's Python, which has what ``work`` imports, and return its exit status.

    The process that the user starts reads the options, sets up the host and runs the same command line again there;
    only that second process does the work. Nothing outside of ``work`` may need more than the standard library.

    Args:
        read_options: reads ``sys.argv``, in either process.
        work: imports what it needs.
        before: refuses, with HostError, before the host is set up, and names what a user's own ComfyUI must have.
    """
    is_host = sys.argv[1:2] == [HOSTED]
    if is_host:
        del sys.argv[1]
    options = read_options()
    if is_host:
        return work(options)
    host = ensure_host(before(options))
    return run_in_host(host, [Path(sys.argv[0]).absolute(), HOSTED, *sys.argv[1:]])
