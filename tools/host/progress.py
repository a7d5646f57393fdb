"""How far a server is with a prompt, for whoever waits."""

import shutil
import sys
import time

from host.client import Event


class Progress:
    """Shows which node runs and how far it is: on one line of a terminal, or as plain lines."""

    def __init__(self, titles: dict[str, str]) -> None:
        self._titles = titles
        self._shown = ""
        self._started = time.monotonic()
        self._on_terminal = sys.stdout.isatty()

    def show(self, event: Event) -> None:
        """Take one event of the server."""
        if event.type != "progress_state":
            return
        for node_id, node in event.data["nodes"].items():
            if node["state"] == "running":
                steps = f" {node['value']:.0f}/{node['max']:.0f}" if node["max"] > 1 else ""
                self._print(f"{self._titles.get(node_id, node_id)}{steps}")

    def end(self) -> None:
        """Say how long it took."""
        self._print("Done")
        if self._on_terminal:
            print()

    def _print(self, text: str) -> None:
        if text == self._shown:
            return
        self._shown = text
        line = f"  {text} ({time.monotonic() - self._started:.1f} s)"
        if self._on_terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{line[:width]:<{width}}", end="", flush=True)
        else:
            print(line, flush=True)
