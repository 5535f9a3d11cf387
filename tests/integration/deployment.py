"""Read what stands in `docker/`, and find what it refers to and does not have."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Self

import yaml

from hpo.cli import app

ROOT = Path(__file__).parents[2]
SECRETS = "/run/secrets/"
PINNED = re.compile(r"[^@\s]+:[^@\s]+@sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """Hold the texts of the files that make up a deployment.

    Attributes:
        compose: `compose.yaml`.
        ignored: `.dockerignore`.
    """

    compose: str
    dockerfile: str
    ignored: str
    caddyfile: str
    make_secrets: str

    @classmethod
    def shipped(cls) -> Self:
        """Read the files of this repository."""
        docker = ROOT / "docker"
        return cls(
            compose=(docker / "compose.yaml").read_text(),
            dockerfile=(docker / "Dockerfile").read_text(),
            ignored=(ROOT / ".dockerignore").read_text(),
            caddyfile=(docker / "Caddyfile").read_text(),
            make_secrets=(docker / "make-secrets").read_text(),
        )

    @property
    def services(self) -> dict[str, dict[str, Any]]:
        """Give the services of the compose file."""
        return yaml.safe_load(self.compose)["services"]


def find_dangling(deployment: Deployment) -> list[str]:
    """List what is referred to and not there, and what is declared and not used."""
    return [
        *_names(deployment),
        *_secrets(deployment),
        *_files(deployment),
        *_images(deployment),
        *_commands(deployment),
        *_upstreams(deployment),
    ]


def _names(deployment: Deployment) -> Iterator[str]:
    """Compare networks, volumes, secrets and services that are named with those that are declared."""
    document = yaml.safe_load(deployment.compose)
    services = deployment.services
    used: dict[str, set[str]] = {"networks": set(), "volumes": set(), "secrets": set()}
    for name, service in services.items():
        used["networks"] |= set(service.get("networks", []))
        used["secrets"] |= set(service.get("secrets", []))
        used["volumes"] |= {source for source, _ in _mounts(service) if not source.startswith(".")}
        shared = re.fullmatch(r"service:(.+)", service.get("network_mode", ""))
        others = {*service.get("depends_on", {}), *([shared[1]] if shared else []), *_storage_hosts(service)}
        yield from (f"{name}: there is no service {other}" for other in sorted(others - set(services)))
    for kind, names in used.items():
        declared = set(document[kind])
        yield from (f"{kind}: {name} is not declared" for name in sorted(names - declared))
        yield from (f"{kind}: {name} is not used" for name in sorted(declared - names))


def _secrets(deployment: Deployment) -> Iterator[str]:
    """Look for every path of a secret among the secrets of its service, and for the file in `make-secrets`."""
    for name, service in deployment.services.items():
        texts = [str(value) for value in service.get("environment", {}).values()]
        texts += [deployment.caddyfile] if name == "caddy" else []
        wanted = {secret for text in texts for secret in re.findall(rf"{SECRETS}(\w+)", text)}
        given = set(service.get("secrets", []))
        yield from (f"{name}: secret {secret} is not given to it" for secret in sorted(wanted - given))
    for secret, source in yaml.safe_load(deployment.compose)["secrets"].items():
        if f"> {source['file']}" not in deployment.make_secrets:
            yield f"secrets: {secret}: nothing makes {source['file']}"


def _files(deployment: Deployment) -> Iterator[str]:
    """Look for every file that is mounted, built from or copied."""
    docker = ROOT / "docker"
    for name, service in deployment.services.items():
        paths = [docker / source for source, _ in _mounts(service) if source.startswith(".")]
        if "build" in service:
            paths += [docker / service["build"]["context"] / service["build"]["dockerfile"]]
        yield from (f"{name}: there is no {path.name}" for path in paths if not path.is_file())
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", deployment.dockerfile, re.MULTILINE))
    for options, paths in re.findall(r"^COPY ((?:--\S+ )*)(.+)$", deployment.dockerfile, re.MULTILINE):
        stage = re.search(r"--from=(\S+)", options)
        if stage and stage[1] not in stages:
            yield f"Dockerfile: there is no stage {stage[1]}"
        for source in () if stage else paths.split()[:-1]:
            if not (ROOT / source).exists() or not _passes(source, deployment.ignored):
                yield f"Dockerfile: {source} is not in the build context"


def _images(deployment: Deployment) -> Iterator[str]:
    """Want foreign images pinned, and build arguments that the Dockerfile takes."""
    arguments = set(re.findall(r"^ARG (\w+)", deployment.dockerfile, re.MULTILINE))
    for name, service in deployment.services.items():
        given = set(service.get("build", {}).get("args", {}))
        yield from (f"{name}: the Dockerfile takes no {argument}" for argument in sorted(given - arguments))
        if "build" not in service and not PINNED.fullmatch(service["image"]):
            yield f"{name}: image {service['image']} is not pinned by tag and digest"
    base = re.search(r"^ARG BASE=(.*)$", deployment.dockerfile, re.MULTILINE)
    if not base or not PINNED.fullmatch(base[1]):
        yield "Dockerfile: the base is not pinned by tag and digest"
    used = set(re.findall(r"\$\{?([A-Z_]+)\}?", deployment.dockerfile)) - {"PATH"}
    yield from (f"Dockerfile: {name} is not an argument" for name in sorted(used - arguments))


def _commands(deployment: Deployment) -> Iterator[str]:
    """Look for the commands of `hpo` that services run, and for the programs that the image starts."""
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    copied = set(re.findall(r"^COPY .* /usr/local/bin/(\S+)$", deployment.dockerfile, re.MULTILINE))
    for name, service in deployment.services.items():
        if "build" in service and (words := shlex.split(service.get("command", ""))) and words[0] not in known:
            yield f"{name}: hpo has no command {words[0]}"
    started = re.findall(r"^(?:ENTRYPOINT|HEALTHCHECK).*\"(hpo-\w+)\"", deployment.dockerfile, re.MULTILINE)
    checked = [
        service["healthcheck"]["test"][1] for service in deployment.services.values() if "healthcheck" in service
    ]
    started += [program for program in checked if program.startswith("hpo-")]
    yield from (f"the image has no program {name}" for name in sorted(set(started) - copied))


def _upstreams(deployment: Deployment) -> Iterator[str]:
    """Want each upstream of Caddy served by a service in Caddy's network, and its settings passed on."""
    served = set()
    for service in deployment.services.values():
        port = re.search(r"--port (\d+)", service.get("command", ""))
        if port and service.get("network_mode") == "service:caddy":
            served.add(f"127.0.0.1:{port[1]}")
    upstreams = set(re.findall(r"reverse_proxy (\S+)", deployment.caddyfile))
    yield from (f"Caddyfile: nothing serves {upstream}" for upstream in sorted(upstreams - served))
    yield from (f"Caddyfile: {upstream} is served to nobody" for upstream in sorted(served - upstreams))
    given = set(deployment.services["caddy"]["environment"])
    read = set(re.findall(r"\{\$(\w+)", deployment.caddyfile))
    undefaulted = set(re.findall(r"\{\$(\w+)\}", deployment.caddyfile))
    yield from (f"Caddyfile: {name} is never set" for name in sorted(undefaulted - given))
    yield from (f"caddy: {name} is never read" for name in sorted(given - read))


def _mounts(service: dict[str, Any]) -> list[tuple[str, str]]:
    """Give sources and targets of a service's volumes, all in the short form."""
    return [(source, target) for source, target, *_ in (volume.split(":") for volume in service.get("volumes", []))]


def _storage_hosts(service: dict[str, Any]) -> set[str]:
    found = re.search(r"@([^/:]+)", service.get("environment", {}).get("HPO_STORAGE", ""))
    return {found[1]} if found else set()


def _passes(source: str, ignored: str) -> bool:
    """Tell whether a `.dockerignore` that starts from nothing lets a path through."""
    rules = [line for line in ignored.splitlines() if line and not line.startswith("#")]
    allowed = rules[0] != "*"
    for rule in rules[1:]:
        if fnmatch(source, rule.lstrip("!")):
            allowed = rule.startswith("!")
    return allowed
