"""A real ComfyUI with this pack in it, as a subprocess that tests can talk to."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
import websocket
from find_host import ROOT
from PIL import Image
from shipped import shipped

FOLDER = "ComfyUI-SRPO"  # dashes, as many pack folders have: the pack must not depend on its folder's name


class HostError(Exception):
    """A prompt that the host refused, failed or was told to stop; the sentence a user would read."""


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class HostServer:
    """ComfyUI on the CPU with its own base directory `base`, which holds the pack, as it is archived.

    Other custom nodes are left out.

    install: where ComfyUI is. base: an empty folder; reuse it to "restart" ComfyUI.
    arguments: more command-line arguments, for instance `("--cache-none",)`.
    Starts at once; use as a context manager or call `stop`.
    """

    def __init__(self, install: Path, base: Path, arguments: Sequence[str] = (), pack: Path = ROOT):
        self.base = Path(base)
        self.pack = self.base / "custom_nodes" / FOLDER
        for name in ("custom_nodes", "input", "output", "models", "user", "temp"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        if not self.pack.exists():
            for path in shipped(pack):
                (self.pack / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(pack / path, self.pack / path)
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.client = uuid.uuid4().hex
        self.messages = []
        self._log = self.base / "host.log"
        self.process = self._start(install, arguments)
        try:
            self._wait_until_up()
            self.socket = websocket.create_connection(f"ws://{self.address}/ws?clientId={self.client}", timeout=30)
        except BaseException:
            self.stop()
            raise

    def _start(self, install: Path, arguments: Sequence[str]):
        command = [sys.executable, "main.py", "--cpu", "--port", self.port, "--base-directory", self.base]
        command += ["--database-url", "sqlite:///:memory:", "--disable-all-custom-nodes"]
        command += ["--whitelist-custom-nodes", FOLDER, *arguments]
        with self._log.open("w") as log:
            return subprocess.Popen([str(c) for c in command], cwd=install, stdin=subprocess.DEVNULL, stdout=log,
                                    stderr=subprocess.STDOUT)  # fmt: skip

    def _wait_until_up(self, seconds: int = 300):
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.get("/system_stats")
            except OSError:
                time.sleep(0.2)
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"ComfyUI did not start:\n{self.log[-4000:]}")

    @property
    def log(self):
        """Everything the host has logged so far."""
        return self._log.read_text(errors="replace")

    def _open(self, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.address}{path}", data)
        return urllib.request.urlopen(request, timeout=60)

    def get(self, path: str):
        """The JSON at `path`."""
        with self._open(path) as answer:
            return json.load(answer)

    def object_info(self):
        """Schemas of all nodes, by id."""
        return self.get("/object_info")

    def file(self, path: str):
        """The bytes at `path`."""
        with self._open(urllib.parse.quote(path, safe="/?&=%+")) as answer:
            return answer.read()

    def picture(self, entry: dict):
        """The PIL image that `entry` of a history's outputs (filename, subfolder, type) stands for."""
        return Image.open(BytesIO(self.file("/view?" + urllib.parse.urlencode(entry)))).convert("RGB")

    def queue(self, prompt: dict):
        """Queue an API-format prompt and return its id. Raises HostError if the host refuses it."""
        try:
            with self._open("/prompt", {"prompt": prompt, "client_id": self.client}) as answer:
                return json.load(answer)["prompt_id"]
        except urllib.error.HTTPError as refused:
            raise HostError(_refusal(json.load(refused))) from None

    def wait(self, prompt_id: str, seconds: int = 300):
        """Follow the prompt to its end and return its history entry; what the host said is in `messages`.

        Raises HostError, naming the node and what it said, if the prompt failed or was interrupted, and TimeoutError.
        """
        self.messages = []
        deadline = time.monotonic() + seconds
        while not self._ended(prompt_id):
            self.messages.append(self._hear(deadline))
        entry = self.get(f"/history/{prompt_id}")[prompt_id]
        for kind, data in entry["status"]["messages"]:
            if kind == "execution_error":
                raise HostError(f"{data['node_type']}: {data['exception_type']}: {data['exception_message'].strip()}")
            if kind == "execution_interrupted":
                raise HostError(f"{data['node_type']}: interrupted")
        return entry

    def _ended(self, prompt_id: str):
        kind, data = self.messages[-1] if self.messages else (None, None)
        return kind == "executing" and data["node"] is None and data["prompt_id"] == prompt_id

    def _hear(self, deadline: float):
        """The host's next message: its type and data."""
        self.socket.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
            message = self.socket.recv()
        except websocket.WebSocketTimeoutException:
            raise TimeoutError(f"The prompt did not end in time. ComfyUI's log:\n{self.log[-2000:]}") from None
        if isinstance(message, bytes):  # a preview picture, or a node's text
            return "preview", message
        message = json.loads(message)
        return message["type"], message["data"]

    def run(self, prompt: dict, seconds: int = 300):
        """Queue `prompt`, wait for it, return its history entry."""
        return self.wait(self.queue(prompt), seconds)

    def interrupt(self):
        """Press Cancel."""
        self._open("/interrupt", {}).close()

    def memory(self):
        """Resident memory of the host in bytes."""
        return psutil.Process(self.process.pid).memory_info().rss

    def stop(self):
        """End the host."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_: Any):
        self.stop()


def _refusal(answer: dict):
    """The host's refusal of a prompt, in lines."""
    lines = [f"{answer['error']['message']} {answer['error']['details']}".strip()]
    for node_id, node in answer["node_errors"].items():
        lines += [f"{node['class_type']} ({node_id}): {e['message']}: {e['details']}" for e in node["errors"]]
    return "\n".join(lines)
