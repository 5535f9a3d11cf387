"""Name workers so that no two live ones have one name."""

import os
import socket

from hpo.worker import name
from hpo.worker.name import name_worker, worker_name


def test_workers_of_one_host_name_and_process_id_differ_by_their_containers_and_machines():
    places = ("boot-1 pid:[1]", "boot-1 pid:[2]", "boot-2 pid:[1]")

    assert len({name_worker("node", 1, place) for place in places}) == 3
    assert name_worker("node", 1, "boot-1 pid:[1]") == name_worker("node", 1, "boot-1 pid:[1]")


def test_a_name_begins_with_the_host_and_ends_with_the_process_id():
    host, _, process_id = worker_name(os.getpid()).rpartition(":")

    assert host.startswith(f"{socket.gethostname()}-")
    assert int(process_id) == os.getpid()


def test_a_system_that_tells_nothing_of_itself_has_workers_too(monkeypatch, tmp_path):
    monkeypatch.setattr(name, "BOOT_ID", tmp_path / "none")

    assert worker_name(7) == name_worker(socket.gethostname(), 7, "")
