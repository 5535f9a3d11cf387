"""Test what is decided about a Ray cluster before anything runs on it."""

import socket
from contextlib import closing
from itertools import count
from types import SimpleNamespace

import pytest

from hpo.errors import BadInput, ClusterUnavailable
from hpo.launch.ray import RayLauncher
from hpo.launch.ray_cluster import (
    Head,
    Node,
    Share,
    check_address,
    check_share,
    choose_share,
    last_line,
    require_one_host,
)
from tests.conftest import free_port

HERE = socket.gethostname()


def node(cpus=0.0, gpus=0.0, host=HERE, address="192.0.2.1"):
    return Node(host=host, address=address, cpus=cpus, gpus=gpus)


@pytest.mark.parametrize(
    ("share", "cpus", "gpus", "slots"),
    [
        (Share(cpus=1), 8.0, 0.0, 8),
        (Share(cpus=1), 0.0, 4.0, 0),
        (Share(cpus=1), 0.5, 0.0, 0),
        (Share(gpus=1.0), 2.0, 4.0, 4),
        (Share(gpus=0.5), 2.0, 4.0, 8),
        (Share(gpus=0.4), 2.0, 4.0, 8),
        (Share(gpus=0.6), 2.0, 4.0, 4),
        (Share(gpus=0.1), 2.0, 1.0, 10),
        (Share(gpus=0.01), 0.0, 1.0, 100),
        (Share(gpus=0.5), 8.0, 0.0, 0),
    ],
)
def test_a_node_has_room_for_whole_shares_each_on_one_gpu(share, cpus, gpus, slots):
    assert share.slots(node(cpus, gpus)) == slots


@pytest.mark.parametrize(
    ("nodes", "asked", "share"),
    [
        ([node(cpus=2)], None, Share(cpus=1)),
        ([node(cpus=2), node(cpus=8, gpus=1)], None, Share(gpus=1.0)),
        ([node(cpus=0), node(cpus=8, gpus=1)], 0.5, Share(gpus=0.5)),
        ([node(cpus=2, gpus=1)], 0.0, Share(cpus=1)),
    ],
)
def test_a_worker_takes_a_gpu_where_there_are_gpus_and_else_a_cpu(nodes, asked, share):
    assert choose_share(nodes, asked, "Ray cluster x:1") == share


@pytest.mark.parametrize(
    ("nodes", "asked", "problem"),
    [
        ([node(cpus=2), node(cpus=1)], 0.5, "--gpus-per-worker 0.5: .* its total is 3 CPUs and 0 GPUs"),
        ([node(cpus=0)], None, "a CPU for each worker: .* its total is 0 CPUs and 0 GPUs"),
        ([node(gpus=1)], 0.0, "a CPU for each worker: .* its total is 0 CPUs and 1 GPUs"),
    ],
)
def test_what_no_node_has_is_refused_with_what_there_is(nodes, asked, problem):
    with pytest.raises(BadInput, match=problem):
        choose_share(nodes, asked, "Ray cluster x:1")


def test_one_file_serves_the_nodes_of_this_host():
    assert require_one_host([node(), node()], "Ray cluster x:1") is None


@pytest.mark.parametrize(
    ("nodes", "hosts"),
    [
        ([node(), node(host="other")], ", ".join(sorted([HERE, "other"]))),
        ([node(host="other")], ", ".join(sorted([HERE, "other"]))),
        ([node(), node(address="192.0.2.2")], "192.0.2.1, 192.0.2.2"),
    ],
)
def test_one_file_is_refused_where_there_are_other_hosts(nodes, hosts):
    with pytest.raises(BadInput) as refused:
        require_one_host(nodes, "Ray cluster x:1")

    assert str(refused.value) == (
        f"storage: SQLite serves one host, and the Ray cluster x:1 has several ({hosts}); use PostgreSQL"
    )


@pytest.mark.parametrize("share", [None, 0.0, 0.01, 0.5, 1.0])
def test_a_share_of_one_gpu_is_taken(share):
    assert check_share(share) is None


@pytest.mark.parametrize("share", [-0.5, 0.001, 1.5, float("nan"), float("inf")])
def test_other_shares_are_refused(share):
    with pytest.raises(BadInput, match=r"^--gpus-per-worker .*: allowed: 0, and from 0\.01 to 1$"):
        check_share(share)


@pytest.mark.parametrize(
    "address",
    ["nonsense", ":6379", "a:", "a:0", "a:99999", "a:٣", "ray://127.0.0.1:10001", "http://a:8265", "\udcff:1"],
)
def test_a_malformed_address_is_refused_with_what_is_allowed(address):
    with pytest.raises(BadInput) as refused:
        check_address(address)

    allowed = "auto, local, or HOST:PORT of a running cluster"
    assert str(refused.value) == f"Ray address {address!r}: allowed: {allowed}"


def test_a_cluster_that_does_not_listen_is_unavailable_at_once():
    with pytest.raises(
        ClusterUnavailable, match=r"^Ray cluster 127\.0\.0\.1:\d+ cannot be reached: Connection refused$"
    ):
        check_address(f"127.0.0.1:{free_port()}")


def test_an_address_at_which_something_listens_is_taken():
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        assert check_address(f"127.0.0.1:{listening.getsockname()[1]}") is None


def test_a_head_is_gone_when_it_has_been_silent_for_too_long_and_not_before(monkeypatch):
    clock = count(step=10.0)
    monkeypatch.setattr("hpo.launch.ray_cluster.time", SimpleNamespace(monotonic=lambda: next(clock)))
    port = free_port()
    head = Head(f"127.0.0.1:{port}")
    for _ in range(2):
        with closing(socket.create_server(("127.0.0.1", port))):
            head.require_answer()
        for _ in range(4):
            head.require_answer()
    with pytest.raises(ClusterUnavailable, match=rf"^the head of the Ray cluster 127\.0\.0\.1:{port} is gone \(Conn"):
        head.require_answer()


def test_the_address_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")

    with pytest.raises(BadInput, match=r"Ray address 'http://127\.0\.0\.1:8265'"):
        RayLauncher.connect(None, "sqlite:///hpo.db", None, None)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("The actor died.\n\tpid: 7\nIts node has died.\n\n", "Its node has died."),
        ("", "no reason given"),
        ("x" * 300, "x" * 200),
    ],
)
def test_of_an_error_of_ray_the_last_line_is_told(text, line):
    assert last_line(text) == line
