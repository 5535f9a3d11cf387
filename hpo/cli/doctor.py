"""`hpo doctor`: check this machine before it trains."""

from __future__ import annotations

import shutil
import sys
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from hpo.cli.help import WORKERS
from hpo.cli.options import ArtifactsOption, DataOption, JsonOption, StorageOption
from hpo.cli.output import print_json
from hpo.errors import BadInput
from hpo.masking import mask_secrets
from hpo.settings import DEFAULT_ARTIFACTS, DEFAULT_DEVICE, DEFAULT_STORAGE, default_data_dir

if TYPE_CHECKING:
    from hpo.launch.doctor import Finding

FAILED = 1
"""The exit code where a check has failed."""


def doctor(
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.", rich_help_panel=WORKERS)
    ] = DEFAULT_DEVICE,
    storage: StorageOption = DEFAULT_STORAGE,
    artifacts: ArtifactsOption = DEFAULT_ARTIFACTS,
    data_dir: DataOption = None,
    json_output: JsonOption = False,
) -> None:
    """Check this machine before it trains.

    Nothing is created. Exits with 1 if a check fails.
    """
    from hpo.artifacts import check_artifacts_url
    from hpo.database.storage import parse_url
    from hpo.launch.doctor import Places, iter_findings
    from hpo.worker.device import pick_device

    parse_url(storage)
    check_artifacts_url(artifacts)
    folder = data_dir or default_data_dir()
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--data-dir {folder}: not a folder")
    places = Places(
        device=pick_device(device), asked_device=device, data_dir=folder, storage=storage, artifacts=artifacts
    )
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    findings = []
    for finding in iter_findings(places):
        findings.append(finding)
        if not json_output:
            print(describe(finding, width), flush=True)
    sound = all(finding.status == "ok" for finding in findings)
    if json_output:
        print_json({"ok": sound, "checks": [asdict(finding) for finding in findings]})
    if not sound:
        raise typer.Exit(FAILED)


def describe(finding: Finding, width: int | None = None) -> str:
    """Write a finding as one line, or for a terminal of a given width as lines below each other."""
    remedy = "" if finding.remedy is None else f"; {finding.remedy}"
    text = " ".join(mask_secrets(f"{finding.text}{remedy}").split())
    title = f"{finding.status:6}  {finding.check:9}  "
    if width is None:
        return title + text
    return textwrap.fill(text, width, initial_indent=title, subsequent_indent=" " * len(title), break_long_words=False)
