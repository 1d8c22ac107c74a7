"""Clients that count what they lose, and a balancer that hears late who is there: as kube-proxy, it carries bytes."""

import asyncio
import http.client
import itertools
import json
import socket
import threading
import time
import uuid


class Balancer:
    """Deals connections out in turn to the ports that it knows of. It hears of every change after `propagation` seconds."""

    def __init__(self, propagation: float) -> None:
        self.propagation = propagation
        self.targets: list[int] = []
        self._turn = itertools.count()
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        threading.Thread(target=self._run, args=(ready,), daemon=True).start()
        ready.wait(10)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._carry, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()

    def add(self, port: int) -> None:
        self._later(lambda: port in self.targets or self.targets.append(port))

    def remove(self, port: int) -> None:
        self._later(lambda: port in self.targets and self.targets.remove(port))

    def _later(self, change) -> None:
        self._loop.call_soon_threadsafe(self._loop.call_later, self.propagation, change)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            port = self.targets[next(self._turn) % len(self.targets)]
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        except (OSError, ZeroDivisionError):
            writer.close()
            return

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
                sink.write_eof()
            except OSError:
                sink.close()

        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        for one in (writer, far_writer):
            one.close()


class Load:
    """Clients of four kinds, until they are stopped: what they asked, and what they did not get."""

    def __init__(self, port: int, token: str, long_poll: float) -> None:
        self.port, self.token, self.long_poll = port, token, long_poll
        self.done = {"short": 0, "kept alive": 0, "/sync": 0, "requestToken": 0}
        self.reopened = 0
        self.lost: list[str] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        for kind, count, ask in (("short", 3, self._short), ("kept alive", 2, self._kept), ("/sync", 6, self._sync), ("requestToken", 2, self._request_token)):
            self._threads += [threading.Thread(target=self._repeat, args=(kind, ask), daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def summary(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.done.items())
        return f"{kinds}; {self.reopened} connections that had been idle were opened again"

    def _repeat(self, kind: str, ask) -> None:
        kept: list[http.client.HTTPConnection] = []
        while not self._stop.is_set():
            try:
                status, body = ask(kept)
            except (OSError, http.client.HTTPException) as error:
                status, body = 0, repr(error).encode()
                kept.clear()
            if status == 200:
                self.done[kind] += 1
            else:
                self.lost.append(f"{time.strftime('%T')} {kind}: {status} {body[:120]!r}")
            # A pace, and no wait for anything.
            self._stop.wait(0.03)

    def _exchange(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Authorization": f"Bearer {self.token}", "Connection": "close"} | ({"Content-Type": "application/json"} if body else {})
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        got = answer.status, answer.read()
        connection.close()
        return got

    def _short(self, _kept: list) -> tuple[int, bytes]:
        return self._exchange("GET", "/_matrix/client/versions")

    def _sync(self, _kept: list) -> tuple[int, bytes]:
        status, body = self._exchange("GET", "/_matrix/client/r0/sync?timeout=0")
        if status != 200:
            return status, body
        since = json.loads(body)["next_batch"]
        return self._exchange("GET", f"/_matrix/client/r0/sync?timeout={int(self.long_poll * 1000)}&since={since}")

    def _request_token(self, _kept: list) -> tuple[int, bytes]:
        person = uuid.uuid4().hex
        body = {"client_secret": person, "email": f"{person}@example.org", "send_attempt": 1}
        return self._exchange("POST", "/_matrix/client/r0/register/email/requestToken", json.dumps(body).encode())

    def _kept(self, kept: list) -> tuple[int, bytes]:
        """As every client does: a kept connection that is closed before the first byte of an answer is opened again, once."""
        reused = bool(kept)
        if not kept:
            kept.append(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60))
            kept[0].connect()
            kept[0].sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            kept[0].request("GET", "/_matrix/client/r0/login")
            answer = kept[0].getresponse()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            kept.clear()
            if not reused:
                raise
            self.reopened += 1
            return self._kept(kept)
        got = answer.status, answer.read()
        if answer.will_close:
            kept.clear()
        return got
