"""Talk to a headless ComfyUI server over HTTP and its websocket. Needs aiohttp, which ComfyUI requires."""

import asyncio
import json
import re
import struct
import subprocess
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

Json = dict[str, Any]

LOG_NAME = "comfyui.log"
REQUEST_TIMEOUT = 60.0  # seconds
LOG_TAIL = 25  # lines
PREVIEW_WITH_METADATA = 4  # how a binary websocket message of this kind starts (ComfyUI's protocol.py)
ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# Requests to the local server must not go through a proxy that the environment names.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerError(RuntimeError):
    """The server did not start, or it went away; the message ends with the tail of its log."""


class PromptRejected(ValueError):  # noqa: N818 - named after what happened, as ComfyUI says it
    """ComfyUI's validation refused a prompt; the message lists every complaint.

    ``error`` and ``node_errors`` are the server's own answer.
    """

    def __init__(self, prompt: Json, error: Json, node_errors: dict[str, Json]) -> None:
        super().__init__(_rejection_text(prompt, error, node_errors))
        self.error = error
        self.node_errors = node_errors


class ExecutionFailed(RuntimeError):  # noqa: N818 - as above
    """A prompt ended with an error or was interrupted; ``details`` is ComfyUI's own message about it."""

    def __init__(self, details: Json) -> None:
        node = f"{details.get('node_type', 'a node')} (node {details.get('node_id', '?')})"
        kind = details.get("exception_type")
        super().__init__(
            f"{node} failed with {kind}: {str(details['exception_message']).strip()}"
            if kind
            else f"The run was interrupted at {node}."
        )
        self.details = details


@dataclass(frozen=True)
class Event:
    """One message of the server about a prompt.

    ``type`` is ComfyUI's (``executing``, ``progress``, ``progress_state``, ``executed``, ``execution_error``, ...), or
    ``preview``: then ``image`` is an encoded JPEG or PNG and ``data`` names its node.
    """

    type: str
    data: Json
    image: bytes | None = None


EventCallback = Callable[[Event], None]
# Called once the websocket is open: gives a prompt's id, and its history entry if it ended before.
_Begin = Callable[[], tuple[str, Json | None]]


def _ignore(event: Event) -> None:
    pass


@dataclass(frozen=True)
class Client:
    """A client of one running server.

    Every method but ``run`` and ``wait`` may be called from an event callback.
    """

    address: str
    """host:port."""
    base_directory: Path
    """ComfyUI's base directory: models/, input/, output/, ..."""
    process: subprocess.Popen[bytes]
    client_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def log(self) -> Path:
        """The file with everything the server printed."""
        return self.base_directory / LOG_NAME

    def answers(self) -> bool:
        """Whether the server is up."""
        try:
            _opener.open(f"http://{self.address}/system_stats", timeout=REQUEST_TIMEOUT).close()
        except OSError:
            return False
        return True

    def run(self, prompt: Json, on_event: EventCallback = _ignore, timeout: float | None = 600.0) -> Json:
        """Post a prompt in API format, wait for its end and return its history entry; no event is missed.

        Raises PromptRejected, ServerError, and TimeoutError after ``timeout`` seconds (None: never). An error during
        execution does not raise: ``outputs`` looks into the entry.
        """
        return asyncio.run(self._follow(lambda: (self.post_prompt(prompt), None), on_event, timeout))

    def post_prompt(self, prompt: Json) -> str:
        """Queue a prompt in API format and return its id. Raises PromptRejected and ServerError."""
        try:
            answer = self._json("/prompt", {"prompt": prompt, "client_id": self.client_id})
        except urllib.error.HTTPError as refusal:
            if refusal.code != 400:
                raise
            answer = json.load(refusal)
            raise PromptRejected(prompt, answer["error"], answer["node_errors"]) from None
        return answer["prompt_id"]

    def wait(self, prompt_id: str, on_event: EventCallback = _ignore, timeout: float | None = 600.0) -> Json:
        """Wait for the end of a posted prompt and return its history entry, as ``run`` does.

        Events from before this call are missed.
        """
        return asyncio.run(self._follow(lambda: (prompt_id, self.history(prompt_id)), on_event, timeout))

    def interrupt(self) -> None:
        """Interrupt the prompt that is running, if any."""
        self._request("/interrupt", {})

    def queue(self) -> Json:
        """Return ``queue_running`` and ``queue_pending``."""
        return self._json("/queue")

    def history(self, prompt_id: str) -> Json | None:
        """Return the history entry of a prompt, or None while it has not ended."""
        return self._json(f"/history/{prompt_id}").get(prompt_id)

    def object_info(self, node_id: str | None = None) -> Json:
        """Return the descriptions of all nodes by their id, or of one; an unknown id gives an empty dict."""
        return self._json(f"/object_info/{urllib.parse.quote(node_id)}" if node_id else "/object_info")

    def download(self, filename: str, subfolder: str = "", type: str = "output") -> bytes:  # noqa: A002 - ComfyUI's name
        """Return the content of a file that a history entry names."""
        query = urllib.parse.urlencode({"filename": filename, "subfolder": subfolder, "type": type})
        return self._request(f"/view?{query}")

    def _json(self, path: str, body: Json | None = None) -> Json:
        return json.loads(self._request(path, body))

    def _request(self, path: str, body: Json | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://{self.address}{path}", data, headers={"Content-Type": "application/json"}
        )
        try:
            with _opener.open(request, timeout=REQUEST_TIMEOUT) as response:
                return response.read()
        except urllib.error.HTTPError:
            raise
        except OSError as error:
            raise ServerError(f"ComfyUI does not answer ({error}).\n{log_tail(self.log)}") from error

    async def _follow(self, begin: _Begin, on_event: EventCallback, timeout: float | None) -> Json:
        try:
            return await asyncio.wait_for(self._listen(begin, on_event), timeout)
        except asyncio.TimeoutError:
            raise TimeoutError(f"The prompt did not end within {timeout} s; log: {self.log}") from None
        except aiohttp.ClientError as error:
            raise ServerError(f"ComfyUI's websocket failed ({error}).\n{log_tail(self.log)}") from error

    async def _listen(self, begin: _Begin, on_event: EventCallback) -> Json:
        url = f"ws://{self.address}/ws?clientId={self.client_id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as websocket:
            # Without this, preview images come without the node they belong to.
            await websocket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            prompt_id, entry = begin()
            if entry is not None:
                return entry
            async for message in websocket:
                event = _event(message)
                if event is None or event.data.get("prompt_id") != prompt_id:
                    continue
                on_event(event)
                # The entry is written after execution_success and before this last event.
                if event.type == "executing" and event.data["node"] is None:
                    entry = self.history(prompt_id)
                    if entry is not None:
                        return entry
        raise ServerError(f"ComfyUI closed the connection before the prompt ended.\n{log_tail(self.log)}")


def outputs(entry: Json) -> dict[str, Json]:
    """Return what a history entry's nodes gave, by node id. Raises ExecutionFailed if the prompt did not succeed."""
    if entry["status"]["status_str"] != "success":
        ends = ("execution_error", "execution_interrupted")
        raise ExecutionFailed(next(data for kind, data in entry["status"]["messages"] if kind in ends))
    return entry["outputs"]


def log_text(log: Path) -> str:
    """What a server printed, without colours."""
    return ANSI_COLOUR.sub("", log.read_text(encoding="utf-8", errors="replace"))


def log_tail(log: Path) -> str:
    """The last lines of it, with where the rest is."""
    return "\n  ".join([f"The end of {log}:", *log_text(log).splitlines()[-LOG_TAIL:]])


def _event(message: aiohttp.WSMessage) -> Event | None:
    if message.type is aiohttp.WSMsgType.TEXT:
        content = json.loads(message.data)
        return Event(content["type"], content["data"])
    if message.type is aiohttp.WSMsgType.BINARY:
        # Two big-endian numbers, the kind and the length of the metadata; then the metadata; then the image.
        kind, length = struct.unpack(">II", message.data[:8])
        if kind == PREVIEW_WITH_METADATA:
            return Event("preview", json.loads(message.data[8 : 8 + length]), message.data[8 + length :])
    return None


def _rejection_text(prompt: Json, error: Json, node_errors: dict[str, Json]) -> str:
    lines = [f"ComfyUI refused the workflow: {error['message']}"]
    if error.get("details") and not node_errors:
        lines.append(f"  {error['details']}")
    for node_id, node in node_errors.items():
        title = prompt.get(node_id, {}).get("_meta", {}).get("title", node["class_type"])
        lines += [
            f"  {title} (node {node_id}): {complaint}" for complaint in dict.fromkeys(map(_sentence, node["errors"]))
        ]
    return "\n".join(lines)


def _sentence(complaint: Json) -> str:
    if complaint["type"] == "custom_validation_failed":
        # The node's own sentence, which ComfyUI repeats for every input the node checks.
        return complaint["details"].removeprefix(f"{complaint['extra_info']['input_name']} - ")
    return f"{complaint['message']}: {complaint['details']}"
