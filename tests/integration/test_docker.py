"""Check `docker/` as far as no container is needed: forms, references, scripts, and Caddy before the dashboard."""

from __future__ import annotations

import base64
import os
import shutil
import ssl
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from hpo.database.storage import open_storage
from tests.conftest import PASSWORD, PostgreSQL, free_port
from tests.integration.deployment import ROOT, Deployment, find_dangling
from tests.integration.support import wait_until

DOCKER = ROOT / "docker"
PROGRAMS = Path(sys.executable).parent
START_S = 60.0
GPUS = ("GPU-aaaa", "GPU-bbbb")
WHOLE = "".join(f"GPU {index}: NVIDIA A100-SXM4-40GB (UUID: {uuid})\n" for index, uuid in enumerate(GPUS))
SLICED = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)
  MIG 1g.10gb     Device  0: (UUID: MIG-cccc)
  MIG 1g.10gb     Device  1: (UUID: MIG-GPU-dddd/1/0)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb)
"""


def output_of(*command: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False
    )
    return done.returncode, done.stdout


def test_the_dockerfile_satisfies_hadolint() -> None:
    assert output_of(PROGRAMS / "hadolint", DOCKER / "Dockerfile") == (0, "")


def test_the_compose_file_satisfies_its_schema() -> None:
    check: list[str | Path] = [
        PROGRAMS / "check-jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        DOCKER / "compose.yaml",
    ]
    assert output_of(*check) == (0, "ok -- validation done\n")


def test_every_reference_resolves() -> None:
    assert find_dangling(Deployment.shipped()) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "found"),
    [
        ("compose", "service:caddy", "service:proxy", ["dashboard: there is no service proxy", "nothing serves"]),
        ("compose", "@postgres/hpo", "@database/hpo", ["there is no service database"]),
        ("compose", "networks: [database]", "networks: [back]", ["networks: back is not declared"]),
        ("compose", "caddy:/config", "config:/config", ["config is not declared", "volumes: caddy is not used"]),
        ("compose", "secrets: [dashboard_users]", "secrets: []", ["caddy: secret dashboard_users is not given"]),
        ("compose", "secrets/dashboard_users", "secrets/users", ["nothing makes secrets/users"]),
        ("compose", "./Caddyfile:", "./caddyfile:", ["caddy: there is no caddyfile"]),
        ("compose", "VARIANT: cpu", "KIND: cpu", ["worker: the Dockerfile takes no KIND"]),
        ("compose", "caddy:2.11.7-alpine@", "caddy:latest-", ["caddy: image docker.io/library/caddy:latest-sha256"]),
        ("compose", "command: worker", "command: work", ["worker: hpo has no command work"]),
        ("compose", "hpo-healthcheck", "hpo-health", ["the image has no program hpo-health"]),
        ("compose", "HPO_TLS: ", "HPO_CERTIFICATE: ", ["caddy: HPO_CERTIFICATE is never read"]),
        ("dockerfile", "AS build", "AS made", ["Dockerfile: there is no stage build"]),
        ("dockerfile", "COPY hpo hpo", "COPY src hpo", ["Dockerfile: src is not in the build context"]),
        ("dockerfile", "ARG EXTRAS=s3", "", ["Dockerfile: EXTRAS is not an argument"]),
        ("dockerfile", "@sha256:88", "@sha256:8", ["Dockerfile: the base is not pinned"]),
        ("ignored", "!constraints.txt\n", "", ["Dockerfile: constraints.txt is not in the build context"]),
        ("caddyfile", "127.0.0.1:8080", "127.0.0.1:80", ["nothing serves 127.0.0.1:80", "8080 is served to nobody"]),
        ("caddyfile", "{$HPO_SITE:localhost}", "{$HPO_HOST}", ["HPO_HOST is never set", "HPO_SITE is never read"]),
    ],
)
def test_a_reference_that_does_not_resolve_is_named(file: str, old: str, new: str, found: list[str]) -> None:
    shipped = Deployment.shipped()
    text = getattr(shipped, file)
    assert old in text
    named = find_dangling(replace(shipped, **{file: text.replace(old, new)}))
    assert [part for part in found if not any(part in line for line in named)] == []


def test_only_caddy_is_published_and_no_password_is_written_down() -> None:
    services = Deployment.shipped().services
    assert {name for name, service in services.items() if "ports" in service} == {"caddy"}
    assert services["postgres"]["networks"] == ["database"]
    words = [word for service in services.values() for word in service.get("environment", {}).items()]
    assert {name: value for name, value in words if "PASS" in name} == {
        "HPO_PASSWORD_FILE": "/run/secrets/postgres_password",
        "POSTGRES_PASSWORD_FILE": "/run/secrets/postgres_password",
    }
    assert services["worker"]["environment"]["HPO_STORAGE"] == "postgresql://hpo@postgres/hpo"


@dataclass(frozen=True, slots=True)
class Container:
    """Run the image's scripts with stand-ins for what the image and the machine have."""

    folder: Path

    def install(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        environment = {"PATH": f"{self.folder}:{os.environ['PATH']}"} | settings
        return subprocess.Popen(
            [DOCKER / "entrypoint", *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def test_the_password_reaches_the_environment_alone(container: Container, tmp_path: Path) -> None:
    container.install("hpo", 'tr "\\0" " " < /proc/$$/cmdline; echo; echo "$PGPASSWORD"')
    secret = tmp_path / "secret"
    secret.write_text(f"{PASSWORD}\n")
    with container.start("worker", "--study", "two words", HPO_PASSWORD_FILE=str(secret)) as process:
        shown, password = process.communicate(timeout=300)[0].splitlines()
    assert password == PASSWORD
    assert shown.endswith("hpo worker --study two words ")


def test_hpo_logs_in_with_the_password_of_the_file(postgresql: PostgreSQL, container: Container) -> None:
    url = postgresql.make_database()
    open_storage(url, "create").close()
    secret = container.folder / "secret"
    secret.write_text(f"{PASSWORD}\n")
    container.install("hpo", f'exec {PROGRAMS / "hpo"} "$@"')
    settings = {"HPO_STORAGE": url.replace(f":{PASSWORD}@", "@"), "HPO_PASSWORD_FILE": str(secret)}
    with container.start("status", **settings) as process:
        said = process.communicate(timeout=300)[0]
    assert (process.returncode, said.endswith(" holds 0 studies; `hpo run` makes one\n")) == (2, True)


def test_a_signal_reaches_hpo_itself(container: Container) -> None:
    container.install("hpo", 'trap "echo got it; exit 143" TERM; echo ready; while :; do sleep 0.05; done')
    with container.start("worker") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert (process.communicate(timeout=300)[0], process.returncode) == ("got it\n", 143)


@dataclass(frozen=True, slots=True)
class Machine:
    """Start containers on a machine whose GPUs `nvidia-smi` lists; `hpo` says which it sees, and waits for a line."""

    container: Container
    locks: Path

    def list(self, listing: str) -> None:
        self.container.install("nvidia-smi", f"[ \"$*\" = -L ] && echo '{listing}'")

    def start(self, **settings: str) -> subprocess.Popen[str]:
        return self.container.start("worker", HPO_GPU_LOCKS=str(self.locks), **settings)

    def refused(self, **settings: str) -> tuple[int, str]:
        with self.start(**settings) as process:
            said = process.communicate(timeout=300)[0]
        return process.returncode, said


@pytest.fixture
def machine(container: Container, tmp_path: Path) -> Machine:
    container.install("hpo", 'echo "$CUDA_VISIBLE_DEVICES"; read line')
    made = Machine(container, tmp_path / "locks")
    made.list(WHOLE)
    return made


def device_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.communicate("\n", timeout=300)


def test_each_worker_of_a_machine_has_a_gpu_of_its_own_until_it_ends(machine: Machine) -> None:
    with machine.start() as first, machine.start() as second:
        assert {device_of(first), device_of(second)} == set(GPUS)
        problem = "error: other workers have all GPUs of this machine (2); start as many as there are\n"
        assert machine.refused() == (2, problem)
        second.kill()
        second.wait()
        with machine.start() as fourth:
            assert device_of(fourth) in GPUS
            end(fourth)
        end(first)


def test_a_gpu_that_has_slices_is_given_away_by_the_slice(machine: Machine) -> None:
    machine.list(SLICED)
    with machine.start() as first, machine.start() as second, machine.start() as third:
        assert {device_of(p) for p in (first, second, third)} == {"MIG-cccc", "MIG-GPU-dddd/1/0", "GPU-bbbb"}
        problem = "error: other workers have all GPUs of this machine (3); start as many as there are\n"
        assert machine.refused() == (2, problem)
        end(first, second, third)


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        ("GPU-bbbb", ["GPU-bbbb"]),
        ("GPU-b", ["GPU-bbbb"]),
        ("GPU-bbbb,MIG-cccc", ["MIG-cccc", "GPU-bbbb"]),
        ("GPU-aaaa", ["MIG-cccc", "MIG-GPU-dddd/1/0"]),
    ],
)
def test_visible_devices_that_are_given_restrict_the_choice_and_are_locked_all_the_same(
    machine: Machine, visible: str, devices: list[str]
) -> None:
    machine.list(SLICED)
    started = [machine.start(CUDA_VISIBLE_DEVICES=visible) for _ in devices]
    assert {device_of(process) for process in started} == set(devices)
    problem = f"error: other workers have all GPUs of this machine ({len(devices)}); start as many as there are\n"
    assert machine.refused(CUDA_VISIBLE_DEVICES=visible) == (2, problem)
    end(*started)


@pytest.mark.parametrize(
    ("visible", "problem"),
    [
        ("0", "CUDA_VISIBLE_DEVICES is 0: allowed: UUIDs of GPUs and of slices, GPU-... and MIG-..."),
        ("GPU-aaaa,all", "CUDA_VISIBLE_DEVICES is GPU-aaaa,all: allowed: UUIDs of GPUs and of slices, "),
        ("GPU-gone", "CUDA_VISIBLE_DEVICES is GPU-gone: nvidia-smi -L lists no such device"),
    ],
)
def test_visible_devices_that_name_no_gpu_are_refused(machine: Machine, visible: str, problem: str) -> None:
    code, said = machine.refused(CUDA_VISIBLE_DEVICES=visible)
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: {problem}")


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo 'no driver' >&2; echo more; exit 9", "nvidia-smi -L ends with code 9: no driver"),
        ("echo 'No devices were found'", "nvidia-smi -L lists no GPU: No devices were found"),
        ("echo 'GPU 0: NVIDIA A100 (UUID: No)'", "nvidia-smi -L lists no GPU: GPU 0: NVIDIA A100 (UUID: No)"),
    ],
)
def test_what_is_no_list_of_gpus_is_an_error(machine: Machine, script: str, problem: str) -> None:
    machine.container.install("nvidia-smi", script)
    assert machine.refused() == (2, f"error: {problem}\n")


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="nvidia-smi is installed")
def test_no_nvidia_smi_is_an_error(machine: Machine) -> None:
    (machine.container.folder / "nvidia-smi").unlink()
    problem = "error: nvidia-smi is missing; NVIDIA's container toolkit provides it\n"
    assert machine.refused() == (2, problem)


def test_workers_of_the_gpu_variant_do_not_train_on_the_cpu() -> None:
    services = Deployment.shipped().services
    assert services["worker-gpu"]["command"] == "worker --forever --device cuda"
    assert services["worker"]["command"] == "worker --forever"


def test_the_health_check_asks_the_storage_with_the_password_of_the_file(
    postgresql: PostgreSQL, tmp_path: Path
) -> None:
    url = postgresql.make_database().replace(f":{PASSWORD}@", "@")
    secret = tmp_path / "secret"
    environment = os.environ | {"HPO_STORAGE": url, "HPO_PASSWORD_FILE": str(secret)}

    def check() -> tuple[int, str]:
        command: list[str | Path] = [sys.executable, DOCKER / "healthcheck.py"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        return done.returncode, done.stderr

    secret.write_text(f"{PASSWORD}\n")
    assert check() == (0, "")
    secret.write_text("wrong\n")
    code, said = check()
    assert (code, said.startswith("not well: "), PASSWORD in said) == (1, True, False)


def make_secrets(folder: Path) -> str:
    """Run `make-secrets` in a copy of `docker/`."""
    for name in ("make-secrets", "compose.yaml"):
        shutil.copy(DOCKER / name, folder)
    environment = os.environ | {"CADDY": str(PROGRAMS / "caddy")}
    done = subprocess.run([folder / "make-secrets"], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_secrets_are_random_kept_and_for_nobody_else_on_the_machine(tmp_path: Path) -> None:
    said = make_secrets(tmp_path)
    secrets = tmp_path / "secrets"
    before = {path.name: path.read_text() for path in secrets.iterdir()}
    assert set(before) == {"postgres_password", "dashboard_users"}
    assert before["dashboard_users"].startswith("admin $2a$14$")
    assert len(before["postgres_password"].strip()) == 32
    assert said.split()[-1] not in "".join(before.values())
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert make_secrets(tmp_path) == ""
    assert {path.name: path.read_text() for path in secrets.iterdir()} == before


@contextmanager
def running(*command: str | Path, **settings: str) -> Iterator[None]:
    """Run a server while the context lasts."""
    with subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


@dataclass(frozen=True, kw_only=True, slots=True)
class Front:
    """Ask the dashboard through Caddy, trusting Caddy's own authority alone."""

    address: str
    authority: Path
    password: str

    def ask(self, user: str | None, method: str = "GET") -> tuple[int, Any]:
        request = urllib.request.Request(f"{self.address}/api/studies", method=method)
        if user is not None:
            credentials = base64.b64encode(f"{user}:{self.password}".encode()).decode()
            request.add_header("Authorization", f"Basic {credentials}")
        try:
            context = ssl.create_default_context(cafile=self.authority)
            with urllib.request.urlopen(request, timeout=30, context=context) as reply:
                return reply.status, reply.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Run `hpo dashboard` on an empty database, and Caddy before it with the shipped Caddyfile."""
    folder = tmp_path_factory.mktemp("front")
    password = make_secrets(folder).split()[-1]
    port, upstream = free_port(), free_port()
    caddyfile = folder / "Caddyfile"
    caddyfile.write_text((DOCKER / "Caddyfile").read_text().replace("127.0.0.1:8080", f"127.0.0.1:{upstream}"))
    storage = f"sqlite:///{folder}/hpo.db"
    open_storage(storage, "create").close()
    settings = {"HPO_SITE": f"localhost:{port}", "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    settings["HPO_DASHBOARD_USERS"] = str(folder / "secrets" / "dashboard_users")
    dashboard: list[str | Path] = [PROGRAMS / "hpo", "dashboard", "--storage", storage, "--port", str(upstream)]
    authority = folder / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    made = Front(address=f"https://localhost:{port}", authority=authority, password=password)

    def answers(user: str | None, code: int) -> bool:
        try:
            return authority.exists() and made.ask(user)[0] == code
        except urllib.error.URLError:  # it does not listen yet
            return False

    with running(PROGRAMS / "caddy", "run", "--config", caddyfile, **settings):
        wait_until(lambda: answers("admin", 502), START_S, "Caddy without a dashboard behind it")
        with running(*dashboard):
            wait_until(lambda: answers("admin", 200), START_S, "the dashboard behind Caddy")
            yield made


def test_caddy_lets_in_who_has_the_password(front: Front) -> None:
    code, headers = front.ask("admin")
    assert (code, headers["Content-Type"]) == (200, "application/json")
    assert (headers["Strict-Transport-Security"], headers["X-Frame-Options"]) == ("max-age=31536000", "DENY")


@pytest.mark.parametrize("user", [None, "root", "admin"])
def test_caddy_lets_in_nobody_else(front: Front, user: str | None) -> None:
    code, headers = replace(front, password="wrong").ask(user)
    assert (code, headers["WWW-Authenticate"]) == (401, 'Basic realm="restricted"')


def test_the_dashboard_behind_caddy_is_read_only(front: Front) -> None:
    assert front.ask("admin", method="POST")[0] == 405


def test_without_encryption_there_is_nothing(front: Front) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(front.address.replace("https:", "http:"), timeout=30)
    with refused.value:
        assert refused.value.code == 400
