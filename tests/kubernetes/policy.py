"""What a manifest of ours has to be, beyond Kubernetes' schemas."""

import tomllib
from collections.abc import Iterator

WORKLOADS = ("Deployment", "StatefulSet")


def faults(objects: list[dict]) -> list[str]:
    return [*_of_all(objects)]


def _of_all(objects: list[dict]) -> Iterator[str]:
    workloads = [one for one in objects if one["kind"] in WORKLOADS]
    if len(workloads) != 1:
        yield f"{len(workloads)} workloads"
        return
    workload = workloads[0]
    template = workload["spec"]["template"]
    pod, labels = template["spec"], template["metadata"]["labels"]
    containers = pod.get("initContainers", []) + pod["containers"]
    shims = [one for one in containers if one["name"] == "threepid-shim"]
    if len(shims) != 1:
        yield f"{len(shims)} shims"
        return
    shim = shims[0]
    ports = {port["name"] for one in containers for port in one.get("ports", [])}
    configuration = next(tomllib.loads(one["data"]["threepid-shim.toml"]) for one in objects if one["kind"] == "ConfigMap" and "threepid-shim.toml" in one["data"])
    yield from _of_pod(pod, containers, ports)
    yield from _of_shim(shim)
    yield from _of_life(pod, shim, configuration)
    yield from _of_doors(pod, shim, configuration)
    yield from _around(objects, workload, labels, ports)
    for one in objects:
        if one["kind"] != "Namespace" and "app.kubernetes.io/name" not in one["metadata"].get("labels", {}) and one["kind"] not in ("ConfigMap", "Secret"):
            yield f"{one['kind']} {one['metadata']['name']}: no label app.kubernetes.io/name"


def _of_pod(pod: dict, containers: list[dict], ports: set[str]) -> Iterator[str]:
    if pod.get("automountServiceAccountToken") is not False:
        yield "a service account's token is mounted, which nobody needs"
    volumes = {volume["name"] for volume in pod["volumes"]}
    for one in containers:
        name = one["name"]
        image = one.get("image", "")
        tag = image.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in image and (not tag or tag == "latest"):
            yield f"{name}: image {image!r} has no version"
        if "memory" not in one.get("resources", {}).get("limits", {}):
            yield f"{name}: no limit of memory"
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            port = one.get(probe, {}).get("httpGet", {}).get("port")
            if port not in ports:
                yield f"{name}: {probe} asks port {port}"
        for mount in one.get("volumeMounts", []):
            if mount["name"] not in volumes and mount["name"] != "data":
                yield f"{name}: mounts {mount['name']}, which is no volume"


def _of_shim(shim: dict) -> Iterator[str]:
    context = shim["securityContext"]
    wanted = {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False}
    wanted |= {"capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}
    for key, value in wanted.items():
        if context.get(key) != value:
            yield f"securityContext.{key} is {context.get(key)}"
    if "ephemeral-storage" not in shim["resources"]["limits"]:
        yield "no limit of what it writes"
    # A probe's path, and its port: the admin door alone knows these.
    for probe, path in {"startupProbe": "/healthz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}.items():
        if shim[probe]["httpGet"] != {"path": path, "port": "shim-admin"}:
            yield f"{probe} asks {shim[probe]['httpGet']}"
    for mount in shim["volumeMounts"]:
        if "subPath" in mount:
            yield f"{mount['mountPath']} is mounted as one file, and never changes"
        if mount["mountPath"] not in ("/var/lib/threepid-shim", "/var/cache/threepid-shim") and not mount.get("readOnly"):
            yield f"{mount['mountPath']} can be written"


def _of_life(pod: dict, shim: dict, configuration: dict) -> Iterator[str]:
    drain = sum(int(configuration["shutdown"][key].removesuffix("s")) for key in ("delay", "grace"))
    if drain >= pod["terminationGracePeriodSeconds"]:
        yield f"it is killed after {pod['terminationGracePeriodSeconds']} s, and drains for {drain}"
    if shim in pod.get("initContainers", []):
        if shim.get("restartPolicy") != "Always":
            yield "an init container that does not end, and is no sidecar"
        if shim["lifecycle"]["preStop"] != {"exec": {"command": ["/usr/bin/threepid-shim", "drain"]}}:
            yield "the sidecar is not told to drain"
        synapse = next(one for one in pod["containers"] if one["name"] == "synapse")
        sleep = synapse["lifecycle"]["preStop"].get("sleep", {}).get("seconds", 0)
        if not drain < sleep < pod["terminationGracePeriodSeconds"]:
            yield f"Synapse waits {sleep} s for a drain of {drain}"


def _of_doors(pod: dict, shim: dict, configuration: dict) -> Iterator[str]:
    listen = configuration["listen"]
    if listen["clients"] != ["0.0.0.0:8080"] or listen["admin"] != ["0.0.0.0:9091"]:
        yield f"doors that no port leads to: {listen}"
    if shim not in pod.get("initContainers", []):
        return
    if listen["identity"] != ["127.0.0.1:8091"]:
        yield "the identity door of a sidecar is open to other pods"
    synapse = next(one for one in pod["containers"] if one["name"] == "synapse")
    trusted = next((one["value"] for one in synapse["env"] if one["name"] == "SSL_CERT_FILE"), None)
    mount = next((one for one in synapse["volumeMounts"] if one["name"] == "threepid-shim-ca"), {})
    if trusted != f"{mount.get('mountPath')}/ca-bundle.pem" or "subPath" in mount or not mount.get("readOnly"):
        yield f"Synapse trusts {trusted}, and has {mount}"
    if any(one["name"] == "threepid-shim-state" for one in synapse["volumeMounts"]):
        yield "Synapse has the shim's sessions and keys"
    if {"name": "threepid-shim-ca", "mountPath": "/var/cache/threepid-shim"} not in shim["volumeMounts"]:
        yield "the shim puts its CA where Synapse does not look"


def _around(objects: list[dict], workload: dict, labels: dict, ports: set[str]) -> Iterator[str]:
    def chosen(selector: dict) -> bool:
        said = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
        return bool(selector) and said and all(labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", []))

    if not chosen(workload["spec"]["selector"]):
        yield "the workload does not find its own pods"
    kinds = {one["kind"] for one in objects}
    yield from (f"no {kind}" for kind in ("Service", "NetworkPolicy", "PodDisruptionBudget", "ConfigMap") if kind not in kinds)
    for one in objects:
        where, spec = f"{one['kind']} {one['metadata']['name']}", one.get("spec", {})
        match one["kind"]:
            case "Service":
                if not chosen({"matchLabels": spec["selector"]}):
                    yield f"{where}: leads nowhere"
                wrong = [port["targetPort"] for port in spec["ports"] if port["targetPort"] not in ("shim-clients", "shim-identity") or port["targetPort"] not in ports]
                if wrong:
                    yield f"{where}: leads to {wrong}, past the shim"
            case "NetworkPolicy":
                if not chosen(spec["podSelector"]) or spec["policyTypes"] != ["Ingress"]:
                    yield f"{where}: guards nothing"
                for rule in spec["ingress"]:
                    names = {port["port"] for port in rule["ports"]}
                    if not names <= ports:
                        yield f"{where}: names {names - ports}"
                    if names != {"shim-clients"} and not all(peer for peer in rule.get("from", [{}])):
                        yield f"{where}: {names} are open to everybody"
            case "PodDisruptionBudget":
                if not chosen(spec["selector"]) or spec.get("maxUnavailable") != 1:
                    yield f"{where}: {spec}"
            case "PodMonitor":
                if not chosen(spec["selector"]) or {end["port"] for end in spec["podMetricsEndpoints"]} != {"shim-admin"}:
                    yield f"{where}: {spec}"
                yield from (f"{where}: its job is {job}, at which no alert looks" for job in _jobs(one) if "threepid-shim" not in job)
            case "PrometheusRule":
                if not all(rule.get("alert") or rule.get("record") for group in spec["groups"] for rule in group["rules"]):
                    yield f"{where}: {spec}"


def _jobs(monitor: dict) -> Iterator[str]:
    """As Prometheus' operator names them, unless it is told otherwise."""
    metadata = monitor["metadata"]
    for end in monitor["spec"]["podMetricsEndpoints"]:
        told = [one["replacement"] for one in end.get("relabelings", []) if one.get("targetLabel") == "job"]
        yield told[-1] if told else f"{metadata.get('namespace', 'default')}/{metadata['name']}"
