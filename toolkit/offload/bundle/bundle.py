"""Read a bundle: the files of one or more plans for a model.

A bundle is a flat directory:

    manifest.json        format, source model, signature, SHA-256 of every file
    plan.json            the plan
    plan-1.json ...      further plans, for other bandwidths or device speeds, or to share the
                         frames of a stream; most bundles have one plan
    device-0.onnx ...    the device's segments, in schedule order
    server-0.onnx ...    the server's segments
    graph.json           the model's layers, for pictures; deployments leave it out
    *.weights            weights too large for one protobuf message, or shared by several parts

The manifest lists the plans, the range of bandwidth of each, the ranges for slower devices where
plans were made for them, the planned share of a stream's frames of each where plans share them, and
the planned rows of a batch where plans may share these. The digest of a bundle is the SHA-256 of
the manifest's content, stored in the manifest. It is the same on both sides, although each side may
have only its own files.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from offload.errors import BundleError, InputError
from offload.planning.plan import Plan, Segment, Side
from offload.planning.plan_set import BandwidthRange, PlanSet, SlowdownRanges, covers_all
from offload.records import from_json

# The numpy dtype of each tensor type of onnxruntime. Types that numpy lacks are carried as another
# dtype: bfloat16 and float8 as their bits, int4 and uint4 as one number in each element.
DTYPES: Mapping[str, np.dtype[Any]] = {
    f"tensor({name})": np.dtype(dtype)
    for name, dtype in {
        "bool": "bool", "float16": "float16", "float": "float32", "double": "float64",
        "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64", "uint8": "uint8",
        "uint16": "uint16", "uint32": "uint32", "uint64": "uint64", "bfloat16": "uint16",
        "float8e4m3fn": "uint8", "float8e4m3fnuz": "uint8", "float8e5m2": "uint8",
        "float8e5m2fnuz": "uint8", "int4": "int8", "uint4": "uint8",
    }.items()
}  # fmt: skip

BUNDLE_FORMAT = 3
MANIFEST = "manifest.json"
PLAN = "plan.json"
_LONGEST_NAME_BYTES = 255  # limit of the usual file systems
# Errors that reading a damaged manifest may raise.
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True, slots=True)
class ModelValue:
    """One input or output of the model, with the attributes of onnxruntime's NodeArg.

    Attributes:
        name: its name in the model.
        type: as onnxruntime writes it: `tensor(float)`.
        shape: an int for a fixed size, a name or None for a dynamic one; None: rank unknown.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True)
class BundleFile:
    """One file of a bundle.

    Attributes:
        name: its name in the bundle's folder.
        sha256: SHA-256 hex digest of its content.
        size_bytes: its size.
        sides: the sides that need it.
        defaults: in a part's file, names of the model's optional inputs that the part uses.
        why_alone: in a file of a server's part, why the part can't run rows of several sessions in
            one batch; empty: it can.
    """

    name: str
    sha256: str
    size_bytes: int
    sides: tuple[Side, ...]
    defaults: tuple[str, ...] = ()
    why_alone: str = ""


@dataclass(frozen=True)
class Bundle:
    """An opened and verified bundle.

    Attributes:
        path: its directory, with symbolic links like `current` resolved when it was opened.
        digest: SHA-256 hex digest of its manifest's content, which identifies it on the server.
        plan_set: its plans, and the range of bandwidth of each.
        inputs: the model's required inputs, in its order.
        outputs: the model's outputs, in its order.
        defaults: the model's optional inputs: they have a default.
        files: all of its files except for the manifest.
        model: name of the model that was split; empty in a bundle written by hand.
    """

    path: Path
    digest: str
    plan_set: PlanSet
    inputs: tuple[ModelValue, ...]
    outputs: tuple[ModelValue, ...]
    defaults: tuple[ModelValue, ...]
    files: tuple[BundleFile, ...]
    model: str = ""

    @property
    def plan(self) -> Plan:
        """The plan of the bundle; of several, the one for the slowest links."""
        return self.plan_set.plans[0]

    @property
    def plans(self) -> tuple[Plan, ...]:
        """All its plans."""
        return self.plan_set.plans

    @property
    def shares(self) -> tuple[float, ...]:
        """The planned share of a stream's frames of each plan; empty: the plans share none."""
        return self.plan_set.shares

    @property
    def rows(self) -> int:
        """Rows of the planned batch if plans may share the rows of a batch; 0: they may not."""
        return self.plan_set.rows

    @property
    def needs_server(self) -> bool:
        """Whether at least one plan uses the server."""
        return not all(plan.is_local for plan in self.plans)

    def only(self, number: int) -> "Bundle":
        """The bundle with one of its plans only.

        Raises:
            InputError: there is no plan of that number.
        """
        if not 0 <= number < len(self.plans):
            last = len(self.plans) - 1
            raise InputError(f"{self.path.name} has no plan {number}: its plans are 0 to {last}")
        return replace(self, plan_set=PlanSet((self.plans[number],)))

    def without_sharing(self) -> "Bundle":
        """The bundle with one plan for all frames of a stream and all rows of a batch.

        Plans that only take frames or rows from others are left out.
        """
        plan_set = self.plan_set
        every = (plan_set.ranges, *(each.ranges for each in plan_set.slower))
        count = 1 + max(interval.plan for ranges in every for interval in ranges)
        kept = PlanSet(self.plans[:count], plan_set.ranges, slower=plan_set.slower)
        return replace(self, plan_set=kept)

    def parts(self, *sides: Side) -> tuple[Segment, ...]:
        """The segments of all plans, common ones once; of some sides or, by default, of both."""
        by_part = {s.part: s for plan in self.plans for s in plan.segments}
        return tuple(s for s in by_part.values() if not sides or s.side in sides)

    def why_alone(self, part: str) -> str:
        """Why a server's part can't run rows of several sessions in one batch; empty: it can."""
        return self._part_files[part].why_alone

    def defaults_of(self, part: str) -> tuple[str, ...]:
        """Names of the inputs with a default that a part uses."""
        return self._part_files[part].defaults

    @cached_property
    def _part_files(self) -> Mapping[str, BundleFile]:
        """The files of the parts, by part."""
        return {Path(file.name).stem: file for file in self.files if file.name.endswith(".onnx")}

    def segment_path(self, part: str) -> Path:
        """Path of the ONNX file of a part."""
        return self.path / f"{part}.onnx"

    def holds(self, side: Side) -> bool:
        """Whether every file that a side needs is in the directory."""
        return all((self.path / file.name).is_file() for file in self.files if side in file.sides)


def open_bundle(path: str | Path, sides: Iterable[Side] = ()) -> Bundle:
    """Open a bundle and verify the digest of every file that is present.

    Args:
        path: the bundle's directory.
        sides: sides whose files must all be present; files of other sides may be missing.

    Raises:
        BundleError: not a bundle, another format, or a file is missing or changed.
    """
    folder = _without_links(Path(path))
    required = set(sides)
    try:
        content = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: NUL byte
        raise BundleError(
            f"{folder} is not a bundle (no {MANIFEST} in it): make one with `offload split`"
        ) from error
    try:
        manifest = json.loads(content)
        digest = manifest.pop("digest")
        if manifest["format"] != BUNDLE_FORMAT:
            raise BundleError(
                f"bundle {folder} has format {manifest['format']}, this version reads"
                f" {BUNDLE_FORMAT}: make it again with `offload split`"
            )
        files = tuple(_file(name, entry) for name, entry in manifest["files"].items())
        inputs, outputs, defaults = (
            tuple(from_json(ModelValue, value) for value in manifest[key])
            for key in ("inputs", "outputs", "defaults")
        )
        names = tuple(map(str, manifest["plans"]))
        model = str(manifest.get("model", {}).get("name", ""))
        ranges = tuple(map(BandwidthRange.from_json, manifest["ranges"]))
        shares = tuple(map(float, manifest.get("shares", ())))
        slower = tuple(from_json(SlowdownRanges, each) for each in manifest.get("slower", ()))
        rows = int(manifest.get("rows", 0))
        is_complete = covers_all(ranges, len(names), shares, slower, rows) and rows >= 0
        if not (is_complete and set(names) <= manifest["files"].keys()):
            raise ValueError("plans and ranges do not fit together")
    except _DAMAGE as error:
        raise BundleError(f"{folder / MANIFEST} is damaged: make the bundle again") from error
    if digest != manifest_digest(manifest):
        raise BundleError(f"{folder / MANIFEST} was changed after it was made: deploy it again")
    for file in files:
        _verify(folder, file, required, names)
    plans = []
    for path in (folder / name for name in names):
        try:
            plans.append(Plan.from_json(json.loads(path.read_text())))
        except (InputError, ValueError, RecursionError) as error:
            raise BundleError(f"{path}: {error}") from error
    segments = (segment for plan in plans for segment in plan.segments)
    if missing := next((s for s in segments if s.file not in manifest["files"]), None):
        raise BundleError(
            f"bundle {folder} lacks the part {missing.part[:80]!r} of its plan: make it again"
        )
    plan_set = PlanSet(tuple(plans), ranges, shares, slower, rows)
    return Bundle(folder, digest, plan_set, inputs, outputs, defaults, files, model)


def manifest_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 hex digest of a manifest's content: all keys but `digest`, in any order."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 hex digest of a file, read in chunks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _without_links(folder: Path) -> Path:
    """The folder with links resolved, so that later reads use the same bundle."""
    try:
        resolved = Path(os.path.realpath(folder))
    except ValueError:  # a NUL byte: no such folder
        return folder
    return folder if resolved == folder.absolute() else resolved


def _file(name: str, entry: Mapping[str, Any]) -> BundleFile:
    if name != Path(name).name or name in ("", ".", "..") or not name.isprintable():
        raise BundleError(f"bundle lists a file outside its folder ({name!r}): do not use it")
    return from_json(BundleFile, {**entry, "name": name})


def _verify(folder: Path, file: BundleFile, required: set[Side], plans: tuple[str, ...]) -> None:
    path = folder / file.name
    if len(os.fsencode(path.name)) > _LONGEST_NAME_BYTES or not path.is_file():
        if required & set(file.sides) or file.name in plans:
            raise BundleError(f"bundle {folder} lacks {file.name}: deploy or make it again")
        return
    if path.stat().st_size != file.size_bytes or file_digest(path) != file.sha256:
        raise BundleError(f"{path} was changed after the bundle was made: deploy it again")
