"""A pod, as the kubelet starts and ends it: its volumes, the containers' order, their probes, their preStop hooks, SIGTERM, SIGKILL."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SCALE = 5
_started: list = []


def must(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"tests/kubernetes/pod: {what}")


def until(holds, what: str, limit: float = 60) -> None:
    end = time.monotonic() + limit
    while not holds():
        must(time.monotonic() < end, what)
        time.sleep(0.02)


def toml(text: str) -> dict:
    return tomllib.loads(text)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(port: int, path: str, timeout: float) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(name + " ")).split()[1])


def register(port: int) -> str:
    """An account at the homeserver itself; its access token."""
    body = {"username": "person", "password": "a-password", "auth": {"type": "m.login.dummy"}}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/_matrix/client/r0/register", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["access_token"]


def certificate(folder: Path) -> None:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run([*command.split(), "-keyout", folder / "tls.key", "-out", folder / "tls.crt"], check=True, stderr=subprocess.DEVNULL)


def stop_everything() -> None:
    for one in reversed(_started):
        one.kill()
    _started.clear()


@dataclass(frozen=True)
class Example:
    """What is shipped: the pod, and what its volumes hold, by the name of the ConfigMap or Secret."""

    spec: dict
    objects: dict[tuple[str, str], dict[str, str]]

    @property
    def configuration(self) -> str:
        return self.objects["ConfigMap", "threepid-shim"]["threepid-shim.toml"]


@dataclass(frozen=True)
class Times:
    """In seconds, of the manifest, divided."""

    grace: float
    homeserver_waits: float
    delay: float
    drain: float

    @staticmethod
    def of(spec: dict, configuration: dict) -> "Times":
        synapse = next((one for one in spec["containers"] if one["name"] == "synapse"), {})
        waits = synapse.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        delay, grace = (int(configuration["shutdown"][key].removesuffix("s")) for key in ("delay", "grace"))
        return Times(spec["terminationGracePeriodSeconds"] / SCALE, waits / SCALE, delay / SCALE, grace / SCALE)


class Homeserver:
    def __init__(self, port: int, state: Path, identity_port: int, authority: Path) -> None:
        self.port, self.state = port, state
        self._environment = {**os.environ, "ID_SERVER": f"localhost:{identity_port}", "CA_FILE": str(authority), "STOP_WITH": str(os.getpid())}

    def start(self) -> None:
        _started.append(self)
        done = subprocess.run([ROOT / "tests/homeserver/up", "--daemon", "1.3.1", str(self.port), self.state], env=self._environment, capture_output=True, text=True, check=False)
        must(done.returncode == 0, f"Synapse does not start:\n{done.stdout}{done.stderr}")

    def stop(self) -> None:
        subprocess.run([ROOT / "tests/homeserver/down", "1.3.1", str(self.port), self.state], check=False, capture_output=True)

    kill = stop


class Volume:
    """A ConfigMap or a Secret in a pod: links to `..data`, itself a link, which alone is replaced when the object has changed."""

    def __init__(self, folder: Path, files: dict[str, str]) -> None:
        self.folder = folder
        folder.mkdir()
        self.put(files)
        for name in files:
            (folder / name).symlink_to(f"..data/{name}")

    def put(self, files: dict[str, str]) -> None:
        before = self.folder / "..data"
        old = before.resolve() if before.is_symlink() else None
        new = self.folder / f"..{time.time_ns()}"
        new.mkdir()
        for name, text in files.items():
            (new / name).write_text(text)
        beside = self.folder / "..data_tmp"
        beside.symlink_to(new.name)
        beside.replace(before)
        if old:
            shutil.rmtree(old)


class Redis:
    def __init__(self, folder: Path, password: str) -> None:
        folder.mkdir()
        self.port = free_port()
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--dir", folder, "--requirepass", password]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _started.append(self)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(20)


class Pod:
    """One pod: the shim as process 1 of namespaces of its own, and with the sidecar the homeserver beside it. `behind` are the
    balancers that lead to it, each with the name of the door."""

    def __init__(self, name: str, example: Example, shim: Path, folder: Path, behind: list) -> None:
        self.name, self.folder, self._shim, self._behind = name, folder, shim, behind
        spec, configuration = example.spec, toml(example.configuration)
        self.times = Times.of(spec, configuration)
        containers = spec.get("initContainers", []) + spec["containers"]
        self._container = next(one for one in containers if one["name"] == "threepid-shim")
        self.sidecar = self._container in spec.get("initContainers", [])
        must(not self.sidecar or self._container["restartPolicy"] == "Always", "no sidecar")
        self._ports = {door: free_port() for door in ("clients", "identity", "admin")}
        self.homeserver_port = free_port()
        self._process: subprocess.Popen | None = None
        self._homeserver: Homeserver | None = None
        folder.mkdir()
        self._mount(example)
        must(configuration["identity"]["name"].endswith(":8091"), "another identity door")
        self._settings = {
            "SERVER_NAME": "localhost",
            "PUBLIC_BASE_URL": "http://localhost",
            "STATE_DIR": str(folder / "state"),
            "IDENTITY__CA_DIRECTORY": str(folder / "ca"),
            "SHUTDOWN__DELAY": f"{int(self.times.delay * 1000)}ms",
            "SHUTDOWN__GRACE": f"{int(self.times.drain * 1000)}ms",
            "HOMESERVER__URL": f"http://127.0.0.1:{self.homeserver_port}",
            "IDENTITY__NAME": f"localhost:{self._ports['identity']}",
            "EMAIL__TRANSPORT": "file",
            "EMAIL__FROM": "shim@example.org",
            "LIMITS__REQUEST_TOKEN_PER_IP": "1000000/1m",
        } | {f"LISTEN__{door.upper()}": f"127.0.0.1:{port}" for door, port in self._ports.items()}

    def _mount(self, example: Example) -> None:
        """Below the pod's folder, where the configuration is led to look for it: nothing of this machine is covered by a mount."""
        self.volumes: dict[str, Volume] = {}
        self._moved: dict[str, Path] = {}
        self._arguments: list[str] = self._container["args"]
        for mount in self._container["volumeMounts"]:
            volume = next(one for one in example.spec["volumes"] if one["name"] == mount["name"])
            name = volume.get("configMap", {}).get("name") or volume.get("secret", {}).get("secretName")
            files = example.objects.get(("ConfigMap" if "configMap" in volume else "Secret", name or ""))
            if files:
                here = self.folder / mount["name"]
                self.volumes[mount["name"]] = Volume(here, files)
                self._arguments = [argument.replace(mount["mountPath"], str(here)) for argument in self._arguments]
                self._moved[mount["mountPath"]] = here
        self._config_volume = next(one for one in self.volumes.values() if (one.folder / "threepid-shim.toml").exists())
        self.configure(example.configuration)

    def configure(self, text: str) -> None:
        """The ConfigMap as it is now."""
        for path, here in self._moved.items():
            text = text.replace(f'"{path}/', f'"{here}/')
        self._config_volume.put({"threepid-shim.toml": text})

    def reloads(self, outcome: str) -> float:
        return metric(self._ports["admin"], f'threepid_shim_config_reloads_total{{outcome="{outcome}"}}')

    def port(self, door: str) -> int:
        return self._ports[door]

    def depend(self, homeserver_port: int, identity_port: int, redis_port: int, certificates: Path) -> None:
        """On what is outside of the pod, in the standalone variant."""
        self._settings |= {
            "HOMESERVER__URL": f"http://127.0.0.1:{homeserver_port}",
            "IDENTITY__NAME": f"localhost:{identity_port}",
            "IDENTITY__ALLOWED_PEERS": "127.0.0.0/8",
            "IDENTITY__TLS__CERTIFICATE": str(certificates / "tls.crt"),
            "IDENTITY__TLS__PRIVATE_KEY": str(certificates / "tls.key"),
            "STORE__KIND": "redis",
            "STORE__URL": f"redis://127.0.0.1:{redis_port}",
        }

    # ---- start ---------------------------------------------------------------
    def begin(self) -> None:
        self.begin_sidecar()
        self.begin_homeserver()
        self.become_ready()

    def begin_sidecar(self) -> None:
        """Until its startup probe lets the next container start."""
        log = (self.folder / "shim.log").open("a")
        environment = {"PATH": os.environ["PATH"], "HOME": "/"} | {f"THREEPID_SHIM__{key}": value for key, value in self._settings.items()}
        apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._process = subprocess.Popen([*apart, self._shim, *self._arguments], env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        _started.append(self)
        probe = self._container["startupProbe"]
        until(lambda: self.probe("startupProbe") == 200, f"{self.name}: the startup probe fails", probe["periodSeconds"] * probe["failureThreshold"])

    def begin_homeserver(self) -> None:
        authority = self.folder / "ca/ca-bundle.pem"
        self._homeserver = Homeserver(self.homeserver_port, self.folder / "homeserver", self._ports["identity"], authority)
        self._homeserver.start()

    def become_ready(self) -> None:
        until(lambda: self.probe("readinessProbe") == 200, f"{self.name}: the readiness probe fails")
        for balancer, door in self._behind:
            balancer.add(self._ports[door])

    def probe(self, which: str) -> int:
        probe = self._container[which]
        return get(self._ports["admin"], probe["httpGet"]["path"], probe.get("timeoutSeconds", 1))

    # ---- end -----------------------------------------------------------------
    def end(self, look: bool = False) -> None:
        """Deletion: the network hears of it, all preStop hooks begin; the homeserver gets SIGTERM after its own, the sidecar when
        the homeserver has ended. After terminationGracePeriodSeconds all would be killed."""
        begin = time.monotonic()
        self._leave_balancers()
        homeserver_ends = threading.Thread(target=self._end_homeserver)
        if self.sidecar:
            homeserver_ends.start()
            self._pre_stop()
        else:
            self._signal(signal.SIGTERM)
        if look:
            until(lambda: self.probe("readinessProbe") == 503, f"{self.name}: still ready while it drains", 1)
            must(get(self._ports["clients"], "/_matrix/client/versions", 5) == 200, f"{self.name}: closed before the network has heard of it")
        self._wait_for_shim(begin + self.times.grace)
        drained = time.monotonic() - begin
        if self.sidecar:
            must(homeserver_ends.is_alive() or self._homeserver is None, f"{self.name}: the homeserver ended before the shim had drained")
            homeserver_ends.join(60)
        took = time.monotonic() - begin
        must(took < self.times.grace, f"{self.name}: killed, after {took:.1f} s of {self.times.grace}")
        if look:
            print(f"pod {self.name}: the shim had drained after {drained * SCALE:.0f} s of the manifest's, all ended after {took * SCALE:.0f}, {self.times.grace * SCALE:.0f} are allowed")

    def end_wrongly(self) -> None:
        """Everybody gets SIGTERM at once, and the network hears of it afterwards."""
        self._leave_balancers()
        self._signal(signal.SIGTERM)
        self._homeserver.stop()
        self._homeserver = None
        self._wait_for_shim(time.monotonic() + self.times.grace)

    def _leave_balancers(self) -> None:
        for balancer, door in self._behind:
            balancer.remove(self._ports[door])

    def _end_homeserver(self) -> None:
        if self._homeserver is None:
            return
        threading.Event().wait(self.times.homeserver_waits)
        self._homeserver.stop()

    def _pre_stop(self) -> None:
        """`exec`, in the container."""
        _path, *arguments = self._container["lifecycle"]["preStop"]["exec"]["command"]
        inside = ["nsenter", "--target", str(self._inner()), "--pid", "--mount"]
        done = subprocess.run([*inside, self._shim, *arguments], capture_output=True, text=True, check=False)
        must(done.returncode == 0, f"{self.name}: preStop fails: {done.stderr}")

    def _inner(self) -> int:
        return int(Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()[0])

    def _signal(self, number: int) -> None:
        os.kill(self._inner(), number)

    def _wait_for_shim(self, end: float) -> None:
        try:
            code = self._process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            sys.exit(f"tests/kubernetes/pod: {self.name}: the shim does not end by itself")
        must(code == 0, f"{self.name}: the shim ended with {code}")

    def kill(self) -> None:
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
            self._process.wait(20)
