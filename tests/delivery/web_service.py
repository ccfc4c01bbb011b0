"""A web service of delivery as a process of its own, and clients of it."""

from pathlib import Path

import httpx

from tests.delivery.sync_programs import Program


class WebService:
    """A service that `command` starts, until it is killed; `operator` asks it with `token`."""

    def __init__(self, command: list[object], folder: Path, token: str, headers: dict[str, str] | None = None) -> None:
        self.folder, self.token = folder, token
        self._command, self._headers = command, headers or {}
        self._clients: list[httpx.Client] = []
        self.start()

    def start(self) -> None:
        self.process = Program(*self._command, folder=self.folder)
        self.url = f"http://{self.process.wait_for(r'serving +address=(.*)')}"
        self.operator = self.client(self.token)

    def client(self, token: str = "") -> httpx.Client:
        headers = self._headers | ({"Authorization": f"Bearer {token}"} if token else {})
        self._clients.append(httpx.Client(base_url=self.url, headers=headers, timeout=30))
        return self._clients[-1]

    def kill(self) -> None:
        self.process.kill()
        for client in self._clients:
            client.close()
