"""Read the shipped job for KubeRay with Kubernetes' schema, Ray's own reader of such clusters, and our command line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from hpo.cli import app

KUBERNETES = "1.34"
FILE = Path(__file__).parents[2] / "docs" / "kuberay.yaml"


@pytest.fixture
def cluster() -> dict[str, Any]:
    """Give the cluster that the job is run on."""
    job = yaml.safe_load(FILE.read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    found: dict[str, Any] = job["spec"]["rayClusterSpec"]
    return found


def test_the_pods_of_the_job_are_what_kubernetes_takes(cluster: dict[str, Any]) -> None:
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_ray_reads_a_head_without_room_and_eight_nodes_of_one_gpu_from_the_job(cluster: dict[str, Any]) -> None:
    resource = {"metadata": {"name": "hpo", "namespace": "default"}, "spec": cluster}

    read = _derive_autoscaling_config_from_ray_cr(resource)  # no public name, but nothing else of Ray's reads it

    assert read["max_workers"] == 8
    found = {name: node["resources"] for name, node in read["available_node_types"].items()}
    assert found == {
        "headgroup": {"CPU": 0, "memory": 4 * 2**30},
        "gpu": {"CPU": 2, "GPU": 1, "memory": 8 * 2**30},
    }


def test_the_command_of_the_job_is_one_of_ours() -> None:
    program, name, *arguments = shlex.split(yaml.safe_load(FILE.read_text())["spec"]["entrypoint"])
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]

    given = command.make_context(name, arguments).params

    assert program == "hpo"
    chosen = {key: given[key] for key in ("launcher", "address", "workers", "gpus_per_worker", "precision", "trials")}
    assert chosen == {
        "launcher": "ray",
        "address": "auto",
        "workers": None,  # as many as there are GPUs
        "gpus_per_worker": None,
        "precision": "bf16",
        "trials": 200,
    }
