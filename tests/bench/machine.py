"""What has to be there before anything is measured: packages, binaries, descriptors, two cores."""

import os
import resource
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PACKAGES = {"nginx": "nginx", "haproxy": "haproxy", "openssl": "openssl"}
# Both ends of a held connection, and some.
DESCRIPTORS = 65536


@dataclass(frozen=True)
class Binaries:
    shim: Path
    load: Path


def cores() -> tuple[int, int]:
    """The core of load and responder, and the core of the proxies."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def prepare() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two cores are needed: one for the proxy alone, one for the load")
    install()
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, max(hard, DESCRIPTORS)))
    except (ValueError, PermissionError):
        # In a container even root may not go beyond the hard limit.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def descriptors() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def holdable(wanted: int) -> int:
    """How many long-polls a proxy can hold: each is two descriptors."""
    return min(wanted, (descriptors() - 200) // 2)


def install() -> None:
    """Debian's packages that are missing. None of their services is started."""
    os.environ["PATH"] += ":/usr/sbin"
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if not missing:
        return
    print(f"installing Debian's {' '.join(missing)}", flush=True)
    root = [] if os.geteuid() == 0 else ["sudo"]
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        subprocess.run([*root, "tee", policy], input=b"#!/bin/sh\nexit 101\n", stdout=subprocess.DEVNULL, check=True)
        subprocess.run([*root, "chmod", "755", policy], check=True)
    try:
        apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
        subprocess.run([*apt, "update"], check=True)
        options = ["-y", "--no-install-recommends", "--no-remove", "-o", "Dpkg::Use-Pty=0"]
        subprocess.run([*apt, *options, "install", *missing], check=True, stdout=subprocess.DEVNULL)
    finally:
        if ours:
            subprocess.run([*root, "rm", "-f", policy], check=True)


def build(release: bool, load: bool = True) -> Binaries:
    """The shim, and the load generator where it is wanted; unoptimised, as the tests have the shim already, where speed does not matter."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
    load_target = target / "bench-load"
    environment = {**os.environ, "CARGO_TARGET_DIR": str(target)}
    cargo = ["cargo", "build", "--locked", "--quiet", *(["--release"] if release else [])]
    profile = "release" if release else "debug"
    print(f"building the shim{' and the load generator' if load else ''}", flush=True)
    if release:
        # What is measured is what is shipped.
        shim = Path(subprocess.run([ROOT / "deploy/build"], check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout.strip())
    else:
        subprocess.run([*cargo, "--bin", "threepid-shim"], cwd=ROOT, check=True, env=environment)
        shim = target / profile / "threepid-shim"
    if load:
        subprocess.run(cargo, cwd=HERE / "load", check=True, env={**os.environ, "CARGO_TARGET_DIR": str(load_target)})
    return Binaries(shim, load_target / profile / "load")


def certificate(folder: Path) -> Path:
    """A certificate for localhost on P-256, and its key: cert.pem, key.pem, and both in both.pem."""
    both = folder / "both.pem"
    if not both.exists():
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=localhost"
        command += f" -addext subjectAltName=DNS:localhost -keyout {folder}/key.pem -out {folder}/cert.pem"
        subprocess.run(command.split(), check=True, stderr=subprocess.DEVNULL)
        both.write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())
    return both


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()


def describe() -> dict[str, str]:
    """What the figures were measured on and with."""
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    return {
        "shim": output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "nginx": output("nginx", "-v").split("/")[-1],
        "HAProxy": output("haproxy", "-v").split()[2].split("-")[0],
        "kernel": os.uname().release.split("-")[0],
        "congestion control": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "processor": model,
    }
