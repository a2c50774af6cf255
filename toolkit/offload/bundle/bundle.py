"""The bundle noun: plans made files, and the reader the device uses.

A bundle is a flat directory:

    manifest.json        what is here: format, source model, signature, SHA-256 of every file
    plan.json            the plan
    plan-1.json ...      further plans, for other links
    device-0.onnx ...    the device's segments, in schedule order
    server-0.onnx ...    the server's segments
    *.weights            weights too large for one protobuf message, or that several parts need

Most bundles hold one plan, in format 1. With several, the manifest (format 2) also names them
and the ranges of bandwidth for which each is meant. Its identity is the SHA-256 of the
manifest's content, which the manifest carries, the same on both sides though each side may hold
only its own files.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from offload.errors import BundleError, InputError
from offload.planning.plan import Plan, Segment, Side
from offload.planning.plan_set import EVERYWHERE, BandwidthRange, PlanSet, covers_all
from offload.records import from_json

BUNDLE_FORMAT = 1
PLANS_FORMAT = 2
MANIFEST = "manifest.json"
PLAN = "plan.json"
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
_LONGEST = 255  # bytes of a file's name on all usual file systems


@dataclass(frozen=True, slots=True)
class ModelValue:
    """One input or output of the model, shaped like onnxruntime's NodeArg.

    Attributes:
        name: its name in the model.
        type: as onnxruntime writes it: `tensor(float)`.
        shape: an int for a fixed size, a name or None for a dynamic one; None: rank unknown.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True)
class InputDefault:
    """An input with a default: the caller may give it or leave it out.

    Attributes:
        value: name, type and shape.
        parts: the parts of the bundle that use it.
    """

    value: ModelValue
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BundleFile:
    """One file of a bundle: its name, what it must hash to, and who needs it."""

    name: str
    sha256: str
    size_bytes: int
    sides: tuple[Side, ...]


@dataclass(frozen=True)
class Bundle:
    """An opened and verified bundle.

    Attributes:
        path: its directory; links that led there, like `current`, may point elsewhere by now.
        digest: SHA-256 hex digest of its manifest's content: the name the server knows it by.
        ranged: how to run it: its plans, and when each is best.
        inputs: what the caller gives, in the model's order.
        outputs: what the caller gets, in the model's order.
        files: everything it is made of, manifest excluded.
        defaults: what the caller may give besides. Bundles of older versions do not say.
        batch: for each of the server's parts why it can't take rows of several sessions at once;
            empty: it can. Bundles of older versions do not say.
    """

    path: Path
    digest: str
    ranged: PlanSet
    inputs: tuple[ModelValue, ...]
    outputs: tuple[ModelValue, ...]
    files: tuple[BundleFile, ...]
    batch: Mapping[str, str] = field(default_factory=dict)
    defaults: tuple[InputDefault, ...] = ()

    @property
    def plan(self) -> Plan:
        """How to run it: the only plan of most bundles, else the one for the slowest links."""
        return self.ranged.plans[0]

    @property
    def plans(self) -> tuple[Plan, ...]:
        """All its plans."""
        return self.ranged.plans

    @property
    def needs_server(self) -> bool:
        """Whether some plan does not stay on the device."""
        return not all(plan.is_local for plan in self.plans)

    def only(self, number: int) -> "Bundle":
        """The bundle as if it held one of its plans alone.

        Raises:
            InputError: it has no plan of that number.
        """
        if not 0 <= number < len(self.plans):
            last = len(self.plans) - 1
            raise InputError(f"{self.path.name} has no plan {number}: its plans are 0 to {last}")
        return replace(self, ranged=PlanSet((self.plans[number],)))

    def parts(self, *sides: Side) -> tuple[Segment, ...]:
        """The segments of some sides (none: both) in any plan, those in common once."""
        found = {s.part: s for plan in self.plans for s in plan.segments}
        return tuple(s for s in found.values() if not sides or s.side in sides)

    def why_alone(self, part: str) -> str:
        """Why a part of the server's can't take rows of several sessions at once; empty: it can."""
        return self.batch.get(part, "the bundle is of an older version: make it again")

    def defaults_of(self, part: str) -> tuple[str, ...]:
        """Names of the inputs with a default that a part uses."""
        return tuple(default.value.name for default in self.defaults if part in default.parts)

    def segment_path(self, part: str) -> Path:
        """Path of the ONNX file of a part."""
        return self.path / f"{part}.onnx"

    def holds(self, side: Side) -> bool:
        """Whether every file that a side needs is here (a deployed half lacks the other's)."""
        return all((self.path / file.name).is_file() for file in self.files if side in file.sides)


def open_bundle(path: str | Path, sides: Iterable[Side] = ()) -> Bundle:
    """Open a bundle and verify the digest of every file that is there.

    Args:
        path: the bundle's directory.
        sides: sides whose files must all be there; files of other sides may be absent.

    Raises:
        BundleError: no bundle there, another format, or a file is missing or changed.
    """
    folder = _without_links(Path(path))
    required = set(sides)
    try:
        manifest = json.loads(_read_manifest(folder))
        digest = manifest.pop("digest")
        if manifest["format"] not in (BUNDLE_FORMAT, PLANS_FORMAT):
            raise BundleError(
                f"bundle {folder} has format {manifest['format']}, this version reads"
                f" {BUNDLE_FORMAT} and {PLANS_FORMAT}: make it again with `offload split`"
            )
        files = tuple(_file(name, entry) for name, entry in manifest["files"].items())
        inputs = tuple(from_json(ModelValue, value) for value in manifest["inputs"])
        outputs = tuple(from_json(ModelValue, value) for value in manifest["outputs"])
        batch = {str(part): str(why) for part, why in manifest.get("batch", {}).items()}
        defaults = tuple(from_json(InputDefault, value) for value in manifest.get("defaults", []))
        names, ranges = _plans(manifest)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise BundleError(f"{folder / MANIFEST} is damaged: make the bundle again") from error
    if digest != manifest_digest(manifest):
        raise BundleError(f"{folder / MANIFEST} was changed after it was made: deploy it again")
    for file in files:
        _verify(folder, file, required, names)
    plans = tuple(_read_plan(folder / name) for name in names)
    _check_parts(folder, plans, {file.name for file in files})
    ranged = PlanSet(plans, ranges)
    return Bundle(folder, digest, ranged, inputs, outputs, files, batch, defaults)


def plan_names(count: int) -> list[str]:
    """The files of so many plans."""
    return [PLAN, *(f"plan-{number}.json" for number in range(1, count))]


def manifest_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 hex digest of a manifest's content (all keys but `digest`), key order aside."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 hex digest of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _without_links(folder: Path) -> Path:
    """The folder that links lead to now, so that files read later are of the same bundle."""
    try:
        resolved = Path(os.path.realpath(folder))
    except ValueError:  # a NUL byte: no such folder
        return folder
    return folder if resolved == folder.absolute() else resolved


def _read_manifest(folder: Path) -> bytes:
    try:
        return (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"{folder} is not a bundle (no {MANIFEST} in it): make one with `offload split`"
        ) from error


def _file(name: str, entry: Mapping[str, Any]) -> BundleFile:
    if name != Path(name).name or name in ("", ".", "..") or not name.isprintable():
        raise BundleError(f"bundle names a file outside itself ({name!r}): do not use it")
    sides = tuple(Side(side) for side in entry["sides"])
    return BundleFile(name, str(entry["sha256"]), int(entry["size_bytes"]), sides)


def _plans(manifest: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[BandwidthRange, ...]]:
    """The files of the plans and their ranges; ValueError where they do not fit together."""
    if manifest["format"] == BUNDLE_FORMAT:
        return (PLAN,), EVERYWHERE
    names = tuple(map(str, manifest["plans"]))
    ranges = tuple(map(BandwidthRange.from_json, manifest["ranges"]))
    if not set(names) <= manifest["files"].keys() or not covers_all(ranges, len(names)):
        raise ValueError("plans and ranges do not fit together")
    return names, ranges


def _verify(folder: Path, file: BundleFile, required: set[Side], plans: tuple[str, ...]) -> None:
    path = folder / file.name
    if len(os.fsencode(path.name)) > _LONGEST or not path.is_file():
        if required & set(file.sides) or file.name in plans:
            raise BundleError(f"bundle {folder} lacks {file.name}: deploy or make it again")
        return
    if path.stat().st_size != file.size_bytes or file_digest(path) != file.sha256:
        raise BundleError(f"{path} is not the file the bundle was made with: deploy it again")


def _read_plan(path: Path) -> Plan:
    try:
        return Plan.from_json(json.loads(path.read_text()))
    except (InputError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: {error}") from error


def _check_parts(folder: Path, plans: Iterable[Plan], names: set[str]) -> None:
    """BundleError where a plan runs what is no file of the bundle."""
    for segment in (segment for plan in plans for segment in plan.segments):
        if segment.file not in names:
            raise BundleError(
                f"bundle {folder} runs a part that it lacks ({segment.part[:80]!r}): make it again"
            )
