"""The three proxies: their configurations, each as good as it gets with one worker, and their processes."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import machine

SHIM, NGINX, HAPROXY, SPLICE = "shim", "nginx", "haproxy", "haproxy-splice"


class Process:
    """A program on one core, stopped by its pid."""

    def __init__(self, command: list, core: int, log: Path, stdout=None):
        with log.open("ab") as errors:
            self.child = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=stdout or errors,
                stderr=errors,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )
        self.log = log

    def pids(self) -> list[int]:
        """The process and its children: nginx works in one."""
        pid = self.child.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def await_port(self, port: int) -> None:
        end = time.monotonic() + 20
        while time.monotonic() < end and self.child.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.01)
        raise RuntimeError(f"{self.child.args[0]} did not start:\n{self.log.read_text()[-2000:]}")

    def stop(self) -> None:
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(2)
            except subprocess.TimeoutExpired:
                # Held connections: nothing is lost with them.
                self.child.kill()
                self.child.wait()


class Proxy:
    """One of the three in front of a responder. Doors: plain, tls, unix (the responder's socket is one), splice. `purpose` is
    speed; crowd: ready for as many connections as there are descriptors, which nginx pays for in memory from its start; or fidelity:
    nothing is added, upgrades and large heads pass, and nginx leaves Server and Date alone."""

    def __init__(self, kind: str, folder: Path, responder: int, responder_unix: Path, shim: Path, doors=("plain",), purpose="speed"):
        self.kind = kind
        self.purpose = purpose
        self.folder = folder
        self.shim = shim
        self.responder, self.responder_unix = responder, responder_unix
        folder.mkdir()
        self.ports = {door: machine.free_port() for door in doors}
        # The shim has one homeserver and one kind of client door: a process for each.
        self.commands = [self._shim(door) for door in doors] if kind == SHIM else [getattr(self, f"_{kind}")()]
        self.processes: list[Process] = []

    def start(self) -> "Proxy":
        core = machine.cores()[1]
        self.processes = [Process(command, core, self.folder / "log") for command in self.commands]
        for process, port in zip(self.processes, self.ports.values()):
            process.await_port(port)
        return self

    def stop(self) -> None:
        for process in self.processes:
            process.stop()

    def address(self, door: str) -> str:
        return f"127.0.0.1:{self.ports[door]}"

    def pids(self, door: str) -> str:
        at = list(self.ports).index(door) if self.kind == SHIM else 0
        return ",".join(map(str, self.processes[at].pids()))

    def _shim(self, door: str) -> list:
        port, identity = self.ports[door], machine.free_port()
        upstream = f"unix:{self.responder_unix}" if door == "unix" else f"http://127.0.0.1:{self.responder}"
        certificate = machine.certificate(self.folder.parent).parent
        tls = f'tls = {{ certificate = "{certificate}/cert.pem", private_key = "{certificate}/key.pem" }}'
        file = self.folder / f"{door}.toml"
        file.write_text(f"""server_name = "example.org"
public_base_url = "http://127.0.0.1:{port}"
state_dir = "{self.folder}/state-{door}"
[listen]
clients = ["127.0.0.1:{port}"]
identity = ["127.0.0.1:{identity}"]
admin = []
{tls if door == "tls" else ""}
[homeserver]
url = "{upstream}"
needs_shim = "yes"
[identity]
name = "localhost:{identity}"
{tls}
[email]
transport = "log"
[limits]
request_token_per_ip = "1000000/1s"
request_token_per_address = "1000000/1s"
request_token_per_client_secret = "1000000/1s"
email_total = "1000000/1s"
""")
        self.identity = identity
        return [self.shim, "--config", file]

    def _nginx(self) -> list:
        upstream = {"unix": "homeserver_unix"}
        servers = "".join(
            f"""
  server {{
    listen 127.0.0.1:{port}{" ssl" if door == "tls" else ""} backlog=4096;
    location / {{ proxy_pass http://{upstream.get(door, "homeserver")}; }}
  }}"""
            for door, port in self.ports.items()
        )
        certificate = machine.certificate(self.folder.parent).parent
        temp = "\n".join(
            f"  {kind}_temp_path {self.folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        file = self.folder / "nginx.conf"
        # With a sixteenth of its connections left it begins to close some, so it gets more of them than of descriptors.
        connections = 65536 if self.purpose == "crowd" else 1024
        forwarded = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
        kept = 'proxy_set_header Connection "";'
        if self.purpose == "fidelity":
            forwarded = "proxy_pass_header Server; proxy_pass_header Date; proxy_buffering off; proxy_buffer_size 128k;"
            forwarded += " proxy_buffers 8 128k; proxy_busy_buffers_size 128k; large_client_header_buffers 8 128k;"
            kept = 'map $http_upgrade $connection_upgrade { default upgrade; "" ""; }'
            kept += "\n  proxy_set_header Connection $connection_upgrade; proxy_set_header Upgrade $http_upgrade;"
        # No logs, no files, connections kept: the shim writes none of the two either.
        file.write_text(f"""daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile {machine.descriptors()};
pid {self.folder}/pid;
error_log {self.folder}/log error;
events {{ worker_connections {connections}; }}
http {{
{temp}
  access_log off;
  client_max_body_size 0;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  proxy_read_timeout 600s;
  proxy_http_version 1.1;
  proxy_request_buffering off;
  proxy_max_temp_file_size 0;
  {kept}
  proxy_set_header Host $http_host;
  {forwarded}
  ssl_certificate {certificate}/cert.pem;
  ssl_certificate_key {certificate}/key.pem;
  ssl_protocols TLSv1.2 TLSv1.3;
  upstream homeserver {{ server 127.0.0.1:{self.responder}; keepalive 256; keepalive_requests 1000000000; }}
  upstream homeserver_unix {{ server unix:{self.responder_unix}; keepalive 256; keepalive_requests 1000000000; }}
{servers}
}}
""")
        return ["nginx", "-c", file, "-e", self.folder / "log"]

    def _haproxy(self) -> list:
        both = machine.certificate(self.folder.parent)
        fronts = "".join(
            f"""
frontend {door}
  bind 127.0.0.1:{port} backlog 4096{f" ssl crt {both}" if door == "tls" else ""}
  default_backend {door}
backend {door}
  {"option splice-auto" if door == "splice" else ""}
  server homeserver {f"unix@{self.responder_unix}" if door == "unix" else f"127.0.0.1:{self.responder}"}
"""
            for door, port in self.ports.items()
        )
        fidelity = self.purpose == "fidelity"
        connections = (machine.descriptors() - 100) // 2 if self.purpose == "crowd" else 2000
        file = self.folder / "haproxy.cfg"
        file.write_text(f"""global
  nbthread 1
  {"tune.bufsize 131072" if fidelity else ""}
  {"tune.http.maxhdr 256" if fidelity else ""}
  # Its reserve of idle connections does not fit beside them.
  no strict-limits
  maxconn {connections}
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
  {"" if fidelity else "option forwardfor"}
  http-reuse always
{fronts}
""")
        return ["haproxy", "-db", "-f", file]
