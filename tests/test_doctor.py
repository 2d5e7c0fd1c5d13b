"""`thinkrl doctor`: versions, devices and what is missing."""

from __future__ import annotations

from importlib import metadata

import torch
from thinkrl.grpo import doctor
from thinkrl.grpo.cli import main
from thinkrl.rewards.sandbox import isolation_level


def by_name() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.findings()}


def test_doctor_reports_what_is_installed(capsys) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("thinkrl", "python", "torch", "transformers", "kernels", "vllm", "bitsandbytes"):
        assert word in out
    found = by_name()
    assert found["torch"].detail == torch.__version__ and found["torch"].state == "ok"
    assert found["kernels"].detail.startswith("auto is ")
    assert "cores" in found["cpu"].detail
    assert found["sandbox"].detail == f"code rewards run under: {isolation_level()}"


def test_a_version_that_is_too_old_or_absent_is_wrong(monkeypatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "transformers" else real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    found = by_name()
    assert found["transformers"].state == "wrong"
    assert found["transformers"].detail.startswith("1.0, but >=")
    assert found["peft"].state == "wrong" and "not installed" in found["peft"].detail


def test_optional_libraries_are_missing_not_wrong(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    found = by_name()
    assert all(found[name].state == "missing" for name in doctor.OPTIONAL)


def test_the_environment_is_shown(monkeypatch) -> None:
    monkeypatch.setenv("THINKRL_DATA", "/somewhere")
    assert by_name()["THINKRL_DATA"].detail == "/somewhere"
    monkeypatch.delenv("THINKRL_DATA")
    assert "THINKRL_DATA" not in by_name()
