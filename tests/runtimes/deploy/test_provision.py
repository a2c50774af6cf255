import io
import signal
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from offload.errors import InputError
from offload_runtimes.deploy import provision, releases, stages
from offload_runtimes.deploy.provision import objections, wheels_of
from offload_runtimes.device_requirements import REQUIREMENTS

FACTS: dict[str, Any] = {
    "machine": "aarch64",
    "bits": 64,
    "libc": ["glibc", "2.36"],
    "python": [3, 11, 2],
    "disk_free_bytes": 10**10,
    "memory_bytes": 10**9,
    "time_s": 1000.0,
}


def test_a_good_machine_is_taken() -> None:
    assert objections(FACTS, 1001.0) == ()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"bits": 32, "machine": "armv7l"}, "32-bit (armv7l)"),
        ({"libc": ["", ""]}, "glibc 2.28 is needed"),
        ({"libc": ["glibc", "2.24"]}, "glibc 2.24"),
        ({"python": [3, 9, 2]}, "Python is 3.9.2"),
        ({"disk_free_bytes": 10**8}, "100 MB free"),
        ({"memory_bytes": 10**8}, "100 MB of memory"),
        ({"time_s": 0.0}, "clock is off by -1000 s"),
    ],
)
def test_an_unfit_machine_is_told_why(changed: dict[str, Any], words: str) -> None:
    (reason,) = objections({**FACTS, **changed}, 1000.0)
    assert words in reason


def test_the_runtimes_wheel_is_whole_and_the_same_each_time(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in "ab")
    for folder in (first, second):
        folder.mkdir()
    path = provision.write_runtime_wheel(first)
    assert path.read_bytes() == provision.write_runtime_wheel(second).read_bytes()
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        record = next(name for name in names if name.endswith("RECORD"))
        listed = [line.split(",")[0] for line in io.StringIO(wheel.read(record).decode())]
        said = message_from_bytes(wheel.read(record.replace("RECORD", "METADATA")))
    assert sorted(listed) == sorted(names)
    assert said.get_all("Requires-Dist") == list(REQUIREMENTS)
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {
        "offload",
        "offload_runtimes",
    }
    assert "offload_runtimes/agent/serve.py" in names


def test_onnxruntime_can_be_pinned() -> None:
    assert sorted(provision.requirements(None)) == sorted(REQUIREMENTS)
    assert "onnxruntime==1.20.1" in provision.requirements("1.20.1")
    assert len(provision.requirements("1.20.1")) == len(REQUIREMENTS)


def test_odd_wheelhouses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="armv7l"):
        provision.fill_wheelhouse(tmp_path, "armv7l", "3.11")
    with pytest.raises(InputError, match=r"write it like 3\.13"):
        provision.fill_wheelhouse(tmp_path, "aarch64", "three")
    with pytest.raises(InputError, match="holds no wheels"):
        wheels_of(tmp_path)


def done(code: int = 0, out: str = "", err: str = "") -> dict[str, Any]:
    return {"code": code, "out": out, "err": err}


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (done(-signal.SIGILL), "illegal instruction"),
        (done(-signal.SIGSEGV), "SIGSEGV"),
        (done(-signal.SIGKILL), "too long or too much memory"),
        (done(1, err="Traceback\nerror: proof p is missing"), "failed: proof p is missing"),
        (done(3), "exit code 3"),
        (done(0, "warning\n{}"), "exit code 0"),
    ],
)
def test_probes_that_end_badly_are_named(ended: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=f"^the probe on pi .*{words}"):
        stages.judge("pi", ended)


def test_probes_are_judged() -> None:
    text = '{"segments": 2, "worst": %s, "tensor": "t", "allowed": 0.001, "ort": "1.2", "ok": %s}'
    verdict = stages.judge("pi", done(out="noise\n" + text % ("1e-6", "true")))
    assert (verdict.worst, verdict.ort, verdict.segments) == (1e-6, "1.2", 2)
    with pytest.raises(InputError, match=r"'t' is off by 0\.5"):
        stages.judge("pi", done(out=text % ("0.5", "false")))
    with pytest.raises(InputError, match="off by inf"):
        stages.judge("pi", done(out=text % ("null", "false")))


def test_the_release_to_go_back_to() -> None:
    journal = {"current": "bb", "releases": [{"id": "bb"}, {"id": "ab"}, {"id": "aa"}]}
    assert releases.choose("pi", journal, None)["id"] == "ab"
    assert releases.choose("pi", journal, "aa")["id"] == "aa"
    for wanted in ("a", "c", ""):
        with pytest.raises(InputError, match="bb, ab, aa"):
            releases.choose("pi", journal, wanted)
    with pytest.raises(InputError, match="no other release"):
        releases.choose("pi", {"current": "bb", "releases": [{"id": "bb"}]}, None)
