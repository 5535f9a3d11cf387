"""Count cores where the processor has more than a container may use."""

import pytest

from hpo.launch import cores
from hpo.launch.cores import count_cores, list_groups, parse_quota


@pytest.mark.parametrize(
    ("limit", "quota"),
    [("max 100000", None), ("-1 100000", None), ("200000 100000", 2.0), ("150000 100000", 1.5), ("50000 0", None)],
)
def test_a_quota_is_read_in_cores(limit, quota):
    assert parse_quota(limit) == quota


@pytest.mark.parametrize(
    ("groups", "listed"),
    [
        ("0::/", [("", "")]),
        ("0::/kubepods/pod1", [("", "kubepods/pod1"), ("", "kubepods"), ("", "")]),
        (
            "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/",
            [("cpu,cpuacct", "docker/1"), ("cpu,cpuacct", "docker"), ("cpu,cpuacct", "")],
        ),
        ("", []),
    ],
)
def test_the_groups_that_may_limit_a_process_are_its_own_and_those_above(groups, listed):
    assert list_groups(groups) == listed


@pytest.mark.parametrize(
    ("groups", "files", "counted"),
    [
        ("0::/", {}, 16),
        ("0::/", {"cpu.max": "max 100000"}, 16),
        ("0::/", {"cpu.max": "400000 100000"}, 4),
        ("0::/", {"cpu.max": "250000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "6400000 100000"}, 16),
        ("0::/job/step", {"job/cpu.max": "300000 100000", "job/step/cpu.max": "max 100000"}, 3),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        ("4:cpu:/elsewhere", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
    ],
)
def test_workers_are_as_many_as_the_quota_allows(monkeypatch, tmp_path, groups, files, counted):
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(cores, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(cores, "MOUNTS", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: range(16))

    assert count_cores() == counted


def test_without_control_groups_the_affinity_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(cores, "GROUPS", tmp_path / "none")
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: {0, 5})

    assert count_cores() == 2
