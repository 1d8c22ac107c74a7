"""A homeserver for the soak, in a process of its own: it calls the identity server where Synapse 1.3.1 does, and as it does.

Real Synapse 1.3.1 completes some two registrations a second on a core. Accounts are in a journal that is written before the
answer, as a database would, and read again at the start; user-interactive sessions are in memory only, as Synapse's.
"""

import asyncio
import json
import os
import secrets
import ssl
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from soak_wire import Broken, Lines, Message, answer, ordinary, receive

EMAIL = "m.login.email.identity"
KNOWN = {"id_server", "email", "client_secret", "send_attempt", "next_link"}
VERSIONS = {"versions": ["r0.0.1", "r0.1.0", "r0.2.0", "r0.3.0", "r0.4.0", "r0.5.0"], "unstable_features": {"m.lazy_load_members": True}}


class Refused(Exception):
    def __init__(self, status: int, errcode: str, **more):
        super().__init__(errcode)
        self.status, self.body = status, {"errcode": errcode, "error": errcode, **more}


class Homeserver:
    def __init__(self, journal: Path, identity: str, ca: Path):
        host, port = identity.split(":")
        self.name = identity
        self.door = Lines(host, int(port), ssl.create_default_context(cafile=ca))
        self.users: set[str] = set()
        self.owners: dict[str, str] = {}  # address -> user
        self.tokens: dict[str, str] = {}
        self.sessions: dict[str, dict] = {}
        for line in journal.read_text().splitlines() if journal.exists() else []:
            self._know(json.loads(line))
        self.journal = os.open(journal, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def _know(self, entry: dict) -> None:
        if entry["what"] == "seen":
            return
        self.users.add(entry["user"])
        self.owners[entry["address"]] = entry["user"]
        if "token" in entry:
            self.tokens[entry["token"]] = entry["user"]

    def _put_down(self, what: str, **entry: str) -> None:
        os.write(self.journal, json.dumps({"what": what, **entry}).encode() + b"\n")
        self._know({"what": what, **entry})

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await receive(reader)
                writer.write(await self.handle(request))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def handle(self, request: Message) -> bytes:
        method, target, _ = request.first.split(" ")
        url = urlsplit(target)
        path = url.path.removeprefix("/_matrix/client/r0/")
        if url.path == "/_matrix/client/versions":
            return answer(200, json.dumps(VERSIONS).encode())
        if path == "sync":
            await asyncio.sleep(int(parse_qs(url.query)["timeout"][0]) / 1000)
        known = {"register": self.register, "account/password": self.password, "account/3pid": self.add}
        try:
            if path.endswith("/email/requestToken"):
                done = await self.request_token(path, request.json())
            elif method == "POST" and path in known:
                done = await known[path](request)
            else:
                return ordinary(target, request.body)
        except Refused as refused:
            return answer(refused.status, json.dumps(refused.body).encode())
        return answer(200, json.dumps(done).encode())

    async def ask(self, method: str, target: str, body: bytes = b"") -> dict:
        began = time.monotonic()
        fields = {"User-Agent": "Synapse/1.3.1", **({"Content-Type": "application/json"} if body else {})}
        try:
            got = await self.door.ask(method, "/_matrix/identity/api/v1/" + target, body, fields)
        except Broken as broken:
            print(f"{time.strftime('%H:%M:%S')} after {time.monotonic() - began:.1f} s: identity server: {broken}", file=sys.stderr, flush=True)
            raise Refused(500, "M_UNKNOWN") from broken
        if got.status != 200:
            raise Refused(got.status, **{"errcode": "M_UNKNOWN", **{k: v for k, v in got.json().items() if k != "error"}})
        return got.json()

    async def request_token(self, path: str, body: dict) -> dict:
        if missing := {"id_server", "client_secret", "email", "send_attempt"} - set(body):
            raise Refused(400, "M_MISSING_PARAM", missing=sorted(missing))
        if set(body) - KNOWN:  # IdentityHandler.requestEmailToken() got an unexpected keyword argument
            raise Refused(500, "M_UNKNOWN")
        if body["id_server"] != self.name:
            raise Refused(400, "M_SERVER_NOT_TRUSTED")
        known = body["email"] in self.owners
        if path.startswith("account/password") and not known:
            raise Refused(400, "M_THREEPID_NOT_FOUND")
        if not path.startswith("account/password") and known:
            raise Refused(400, "M_THREEPID_IN_USE")
        params = {name: body[name] for name in sorted(KNOWN - {"id_server"}) if name in body}
        return await self.ask("POST", "validate/email/requestToken", json.dumps(params, separators=(",", ":")).encode())

    async def validated(self, creds: dict) -> str | None:
        """IdentityHandler.threepid_from_creds."""
        if "id_server" not in creds:
            raise Refused(400, "M_UNKNOWN")
        if creds["id_server"] != self.name:
            return None
        query = urlencode({"sid": creds["sid"], "client_secret": creds["client_secret"]})
        got = await self.ask("GET", f"3pid/getValidated3pid?{query}")
        if "medium" not in got:
            return None
        self._put_down("seen", sid=creds["sid"], address=got["address"])
        return got["address"]

    async def authenticated(self, body: dict) -> tuple[dict, str, str]:
        """AuthHandler.check_auth: the session, the validated address, its sid."""
        auth = body.get("auth") or {}
        name = auth.get("session")
        if name not in self.sessions:
            name = secrets.token_hex(12)
            self.sessions[name] = {}
        session = self.sessions[name]
        if auth.get("type") == EMAIL:
            address = await self.validated(auth["threepid_creds"])
            if address is None:
                raise Refused(401, "M_UNAUTHORIZED")
            session["done"] = (address, auth["threepid_creds"]["sid"])
        if "done" not in session:
            raise Refused(401, "M_FORBIDDEN", session=name, flows=[{"stages": [EMAIL]}], params={}, completed=[])
        return session, *session["done"]

    async def register(self, request: Message) -> dict:
        body = request.json()
        earlier = self.sessions.get((body.get("auth") or {}).get("session"), {}).get("user")
        if body["username"] in self.users and body["username"] != earlier:
            raise Refused(400, "M_USER_IN_USE")
        session, address, sid = await self.authenticated(body)
        user, token = body["username"], secrets.token_hex(16)
        if "user" not in session:
            if address in self.owners:
                raise Refused(400, "M_THREEPID_IN_USE")
            session["user"] = user
            self._put_down("register", user=user, address=address, sid=sid, token=token)
        return {"user_id": f"@{user}:localhost", "access_token": token, "home_server": "localhost", "device_id": "SOAK"}

    async def password(self, request: Message) -> dict:
        _session, address, sid = await self.authenticated(request.json())
        if address not in self.owners:
            raise Refused(404, "M_NOT_FOUND")
        self._put_down("password", user=self.owners[address], address=address, sid=sid)
        return {}

    async def add(self, request: Message) -> dict:
        user = self.tokens.get(request.fields.get("authorization", "").removeprefix("Bearer "))
        if user is None:
            raise Refused(401, "M_UNKNOWN_TOKEN")
        creds = request.json()["three_pid_creds"]
        address = await self.validated(creds)
        if address is None:
            raise Refused(400, "M_THREEPID_AUTH_FAILED")
        self._put_down("3pid", user=user, address=address, sid=creds["sid"])  # no look whether another has it
        return {}


async def main(port: str, journal: str, identity: str, ca: str) -> None:
    homeserver = Homeserver(Path(journal), identity, Path(ca))
    server = await asyncio.start_server(homeserver.serve, "127.0.0.1", int(port), limit=1 << 18, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
