"""The benchmark on a tiny model: right cells, saved results are not measured again."""

from pathlib import Path

import onnx
import pytest
from offload.costs.link import Link
from offload.errors import InputError, ServerError
from offload_cli.bench.environment import Emulated, Environment, Shaped, shaped
from offload_cli.bench.measure import BenchOptions, measure_all, missing
from offload_cli.bench.results import Group
from offload_cli.bench.subjects import Study, plans_of, prepare
from offload_cli.main import app
from offload_models.builder import Network
from offload_runtimes.emulation import host
from offload_runtimes.emulation import testbed as bed
from offload_runtimes.emulation.experiment import HostPair
from typer.testing import CliRunner

LINK = Link(2e7, 2e7)
EMULATED = Emulated().kind


def build(seed: int = 0, batch: int | str = 1) -> onnx.ModelProto:
    net = Network("tiny", seed, batch)
    image = net.input("image", (3, 32, 32))
    sides = [net.max_pool(f"pool{i}", net.conv_relu(f"conv{i}", image, 8, 3), 3, 2) for i in "ab"]
    return net.model(net.logits("logits", net.flatten("flat", net.concat("join", sides)), 10))


TINY = Study("tiny", build)


def options_of(folder: Path, *networks: str) -> BenchOptions:
    return BenchOptions(
        (TINY,), dict.fromkeys(networks, LINK), folder, 2.0, repeats=3, budget_s=5.0
    )


def silent(*_: object) -> None:
    """Print nothing."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Group:
    options = options_of(tmp_path_factory.mktemp("bench"), "net")
    measure_all(options, Emulated(), silent, silent)
    assert missing(options, EMULATED) == []
    return Group.load(options.path(TINY, "net"))


def test_every_scheme_has_a_cell_with_equal_outputs(measured: Group) -> None:
    schemes = {"local", "cloud", "cloud-raw", "neurosurgeon", "partition", "fifo", "paper", "opss"}
    assert {cell.scheme for cell in measured.cells} == {*schemes, "joint", "auto-raw"}
    assert all(cell.is_equal for cell in measured.cells)
    assert all(len(cell.latencies_s) == 3 for cell in measured.cells)
    assert measured.overheads.keys() == {"paper", "opss", "joint"}


def test_a_cameras_bytes_are_a_quarter(measured: Group) -> None:
    floats, raw = measured.cell("cloud"), measured.cell("cloud-raw")
    assert floats
    assert raw
    assert floats.upload_bytes == 4 * raw.upload_bytes == 4 * 3 * 32 * 32


def test_equal_programs_share_their_runs(measured: Group) -> None:
    by_scheme = {cell.scheme: cell for cell in measured.cells}
    for cell in measured.cells:
        assert by_scheme[cell.runs_as].latencies_s == cell.latencies_s
    assert sum(cell.picked for cell in measured.cells if not cell.scheme.endswith("raw")) == 1


def test_an_input_that_is_kept_is_never_sent(tmp_path: Path) -> None:
    kept = Study("kept", build, keep_input=True)
    ready = prepare(kept, tmp_path, 1000.0, None, silent)
    plans = plans_of(ready, LINK)
    assert ready.camera is None
    assert not {"cloud", "cloud-raw", "auto-raw"} & plans.keys()
    sent = {send.tensor for one in plans.values() for send in one.plan.uploads}
    assert sent
    assert "image" not in sent


def test_finished_cells_stay_when_the_server_dies_in_the_middle(tmp_path: Path) -> None:
    options = options_of(tmp_path, "first", "second")

    class Dying(Emulated):
        """Fails after one network."""

        def rig(self, link: Link, slowdown: float) -> tuple[HostPair, Link | None]:
            if options.path(TINY, "first").exists():
                raise ServerError("the server died")
            return super().rig(link, slowdown)

    with pytest.raises(ServerError):
        measure_all(options, Dying(), silent, silent)
    assert [network for _, network in missing(options, EMULATED)] == ["second"]
    kept = options.path(TINY, "first").read_text()
    measure_all(options, Emulated(), silent, silent)
    assert missing(options, EMULATED) == []
    assert options.path(TINY, "first").read_text() == kept


def test_other_settings_are_measured_again(measured: Group, tmp_path: Path) -> None:
    options = options_of(tmp_path, "net")
    (tmp_path / "cells").mkdir()
    measured.save(options.path(TINY, "net"))
    assert missing(options, EMULATED) == []
    options.path(TINY, "net").write_text("{}")
    assert missing(options, EMULATED) == [(TINY, "net")]
    measured.save(options.path(TINY, "net"))
    assert missing(options, "a shaped link") == [(TINY, "net")]
    faster = BenchOptions((TINY,), {"net": LINK}, tmp_path, 1.0, 3, 5.0)
    measured.save(options.path(TINY, "net"))
    assert missing(faster, EMULATED) == [(TINY, "net")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--models", "nope"], "no model is called 'nope'"),
        (["--networks", "warp"], "link 'warp' is not understood"),
        (["--networks", ";"], "names no network"),
        (["net.onnx"], "add --on DEVICE,SERVER"),
        (["net.onnx", "--on", "pi"], "must name a device and a server"),
        (["no.onnx", "--on", "./pi,./hub"], "does not exist"),
    ],
)
def test_bad_input_is_a_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["bench", "-o", str(tmp_path / "out"), *arguments])
    assert isinstance(shown.exception, InputError)
    assert sentence in str(shown.exception)


@pytest.mark.netns
@pytest.mark.parametrize("by_quota", [False, True])
def test_it_runs_between_namespaces(by_quota: bool, tmp_path: Path) -> None:
    if host.obstacle() or (by_quota and host.cpu_controller() is None):
        pytest.skip(host.obstacle() or "no CPU quotas on this machine")
    options = BenchOptions((TINY,), {"net": LINK}, tmp_path, 2.0, 3, 5.0, by_quota)
    with shaped(LINK) as environment:
        measure_all(options, environment, silent, silent)
    group = Group.load(options.path(TINY, "net"))
    assert "namespaces" in group.settings["link"]
    assert all(cell.is_equal for cell in group.cells)
    sent = group.cell("cloud")
    assert sent
    at_once_bytes = 3_072  # the shaper's burst
    assert sent.median_s > 8 * (sent.upload_bytes - at_once_bytes) / LINK.up_bps
    assert isinstance(environment, Shaped)
    assert environment.testbed not in bed.testbeds()


def test_an_interrupt_is_reported_and_keeps_finished_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: Group
) -> None:
    def interrupted(options: BenchOptions, *_: object) -> None:
        (options.folder / "cells").mkdir()
        measured.save(options.path(TINY, "first"))
        raise KeyboardInterrupt

    monkeypatch.setattr("offload_cli.bench.command.measure_all", interrupted)
    monkeypatch.setattr("offload_cli.bench.command.find_study", lambda _: TINY)
    asked = ["bench", "--emulate", "--networks", "first", "-o", str(tmp_path)]
    monkeypatch.setattr("offload_cli.bench.command.parse_link", lambda _: LINK)
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 130
    assert "keeps what is finished" in shown.stderr
    assert Group.load(tmp_path / "cells" / "tiny-first.json") == measured


def test_a_server_that_dies_is_reported_and_finished_cells_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(*_: object) -> None:
        raise ServerError("the server died")

    monkeypatch.setattr("offload_cli.bench.command.measure_all", died)
    shown = CliRunner().invoke(app, ["bench", "--emulate", "-o", str(tmp_path)])
    assert isinstance(shown.exception, ServerError)
    assert "keeps what is finished" in shown.stderr


def test_without_root_the_link_is_emulated_with_a_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: Group
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda tool: tool)
    monkeypatch.setattr("offload_cli.bench.command.find_study", lambda _: TINY)
    environments: list[Environment] = []

    def measure(options: BenchOptions, environment: Environment, *_: object) -> None:
        environments.append(environment)
        (options.folder / "cells").mkdir()
        measured.save(options.path(TINY, "wifi"))

    monkeypatch.setattr("offload_cli.bench.command.measure_all", measure)
    asked = ["bench", "--models", "tiny", "--networks", "wifi", "-o", str(tmp_path)]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0
    assert "emulated in-process: network namespaces need root" in shown.stderr
    assert environments == [Emulated()]
