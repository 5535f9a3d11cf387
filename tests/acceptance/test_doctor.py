"""Let `hpo doctor` look at this machine, and at one whose promise is broken on purpose."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from hpo import cli
from hpo.launch import doctor
from hpo.training.train import Training
from hpo.trial import promise
from hpo.trial.checkpoints import decode
from tests.acceptance.support import Shell, check_document
from tests.disturbance import one_bit_off

CHECKS = ["versions", "processor", "data", "storage", "artifacts", "device", "promise"]


def test_a_sound_machine_passes_every_check_and_nothing_is_left_behind(shell: Shell) -> None:
    done = shell.hpo("doctor", "--device", "cpu", "--json")

    assert (done.code, done.err) == (0, "")
    check_document(done.json, "doctor")
    assert done.json["ok"] and list(dict.fromkeys(each["check"] for each in done.json["checks"])) == CHECKS
    assert list(shell.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--storage", "mysql://h/d"], "storage mysql://h/d:"),
        (["--artifacts", "ftp://x"], "artifacts 'ftp://x': allowed: "),
        (["--device", "tpu"], "device 'tpu': allowed: auto, cpu, cuda and cuda:N"),
        (["--data-dir", "/etc/passwd"], "--data-dir /etc/passwd: not a folder"),
    ],
)
def test_bad_input_is_one_line(shell: Shell, options: list[str], problem: str) -> None:
    done = shell.hpo("doctor", *options)

    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(f"error: {problem}")
    assert list(shell.folder.iterdir()) == []


def test_one_disturbed_bit_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cpu = torch.device("cpu")
    make = partial(Training, promise.check_recipe(cpu), promise.synthetic_images(cpu), "fp32")
    straight = promise.walk(make, (), promise.FULL.until)
    monkeypatch.setattr(doctor, "walk_in_new_process", lambda _device: {"fp32": straight})
    monkeypatch.setattr(promise, "decode", lambda content: one_bit_off(decode(content)))

    code = cli.app(["doctor", "--device", "cpu", "--data-dir", str(tmp_path)], standalone_mode=False)

    *others, last = capsys.readouterr().out.splitlines()
    assert (code, {line.split()[0] for line in others}) == (1, {"ok"})
    assert last.startswith(
        "failed  promise    cpu in fp32: training does not repeat, interrupted at iterations 1, 3, 4, 5, 8, 10 and 11: "
    )
    assert last.endswith(f" differ; {doctor.MEND}")
