"""`offload deploy`, `releases`, `rollback` and `status` from the outside."""

import json
from pathlib import Path
from typing import Any

import pytest
from offload.bundle.bundle import Bundle, open_bundle
from offload.errors import InputError
from offload.planning.plan import Side
from offload_cli.main import app
from typer.testing import CliRunner

from tests.runtimes.bundles import branches


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    text = f"[pi]\nrole = 'device'\nroot = '{tmp_path / 'pi'}'\n"
    (tmp_path / "devices.toml").write_text(text)
    return tmp_path


def offload(*words: str) -> Any:
    return CliRunner().invoke(app, [*words], env={"COLUMNS": "200"})


def answer(*words: str) -> Any:
    shown = offload(*words, "--format", "json")
    assert shown.exit_code == 0, shown.output
    return json.loads(shown.stdout)


def bundles(folder: Path) -> tuple[Bundle, Bundle]:
    old, new = (branches(folder / f"{width}.bundle", width=width).bundle for width in (16, 32))
    return old, new


def test_there_and_back_again(folder: Path) -> None:
    old, new = bundles(folder)
    (first,) = answer("deploy", "16.bundle", "pi")
    assert (first["result"], first["previous"]) == ("committed", None)
    assert "server-0.onnx" not in first["sent"]
    assert first["probe"]["worst"] <= first["probe"]["allowed"]
    (second,) = answer("deploy", "32.bundle", "pi", "--fallback")
    assert second["previous"] == first["release"]
    assert open_bundle("pi/current", Side).digest == new.digest
    listed = answer("releases", "pi")
    assert [(one["digest"], one["current"]) for one in listed] == [
        (new.digest, True),
        (old.digest, False),
    ]
    assert answer("rollback", "pi")["release"] == old.digest[:16]
    assert open_bundle("pi/current", [Side.DEVICE]).digest == old.digest
    (shown,) = answer("status")
    assert (shown["current"]["digest"], shown["running"]) == (old.digest, False)
    assert shown["damaged"] == []
    assert old.digest[:16] in offload("status").stdout
    assert new.digest[:16] in offload("releases", "pi").stdout


def test_a_target_that_fails_fails_alone(folder: Path) -> None:
    bundles(folder)
    (folder / "file").touch()
    shown = offload("deploy", "16.bundle", "file", "directory", "--side", "both")
    assert shown.exit_code == 1
    assert "file is not a directory" in shown.stderr
    assert "nothing in use was changed" in shown.stderr
    assert open_bundle("directory/current", Side)
    assert "directory: " in shown.stdout
    assert "file: " not in shown.stdout


def test_a_release_that_was_changed_is_not_gone_back_to(folder: Path) -> None:
    old, new = bundles(folder)
    offload("deploy", "16.bundle", "pi")
    offload("deploy", "32.bundle", "pi")
    (folder / "pi/releases" / old.digest[:16] / "device-0.onnx").write_bytes(b"rotten")
    shown = offload("rollback", "pi")
    assert shown.exit_code == 1
    assert "was changed (device-0.onnx)" in shown.stderr
    assert open_bundle("pi/current", [Side.DEVICE]).digest == new.digest
    (folder / "pi/current/device-1.onnx").write_bytes(b"rotten")
    assert answer("status")[0]["damaged"] == ["device-1.onnx"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rollback", "pi"), "no other release"),
        (("deploy", "16.bundle", "pi@host:port"), "is not understood"),
        (("status", "--devices", "nowhere.toml"), "names no devices"),
        (("service", "logs", "pi"), "has no service"),
        (("wheelhouse", "wheels", "--platform", "mips"), "'mips' is unknown"),
    ],
)
def test_bad_input_is_one_sentence(folder: Path, words: tuple[str, ...], message: str) -> None:
    bundles(folder)
    shown = offload(*words)
    assert isinstance(shown.exception, InputError)
    assert message in str(shown.exception)
    assert "\n" not in str(shown.exception)


def test_nothing_was_deployed_yet(folder: Path) -> None:
    assert folder.exists()
    assert "nothing was deployed yet" in offload("releases", "pi").stdout
    assert not (folder / "pi").exists()
