"""Options of a session on the device."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from offload.errors import InputError
from offload.planning.plan_set import SwitchPolicy

from offload_runtimes.device.segment_executor import WarmRunTimes
from offload_runtimes.engine import EngineOptions
from offload_runtimes.security.credentials import ClientSecurity


class OnServerLoss(StrEnum):
    """What the device does when the server is lost, slow or unreachable.

    Attributes:
        RESUME: finish from the tensors at hand; use the server again once it answers.
        LOCAL: finish from the tensors at hand; stay local for the rest of the session.
        RAISE: raise ServerError; with several servers, when none of them can be used.
    """

    RESUME = "resume"
    LOCAL = "local"
    RAISE = "raise"


class LinkCost(Protocol):
    """Time of a message on an emulated link; `offload.costs.link.Link` is one."""

    def upload_s(self, size_bytes: float) -> float:
        """Seconds from device to server."""

    def download_s(self, size_bytes: float) -> float:
        """Seconds from server to device."""


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How a session runs its bundle; every field is a keyword argument of OffloadSession, too.

    Attributes:
        providers: onnxruntime's execution providers in order of preference (also `cuda`,
            `tensorrt`, `openvino`, and `cuda:1` for the second GPU); a missing one is an error.
        threads: threads of one kernel; None: one per physical core that the process may use.
        optimize: let onnxruntime fuse and fold; without it, results are bit-equal to the whole
            model's.
        allow_cpu: run on the CPU, with a warning, if a provider is missing.
        on_server_loss: `resume`, `local` or `raise`, see OnServerLoss.
        deadline_s: seconds from `run` to the answer; the device starts the server's part itself
            when the answer would come too late.
        eager: load the server's part on the device at the start, not when it is first needed;
            None: if there is a deadline.
        require_server: raise an error if the server is unreachable at the start or does not hold
            the bundle; False: begin locally and use the server once it answers.
        heartbeat_s: seconds between pings to the server.
        patience_s: silence after which the server counts as lost, in addition to the time that
            the tensors under way need on the link.
        connect_timeout_s: seconds to reach the server.
        security: certificates and token; None: plaintext.
        plan: index of the plan to follow; None: the best plan for the link as measured during
            the session.
        share: let several plans share the frames of a stream and the rows of a batch, if the
            bundle was made for that.
        switching: how certain to be before changing to another plan.
        link: emulate a link with these costs in each direction.
        slowdown: emulate a device that is N times slower; sessions that share an
            `emulation.pacing.Pacer` share its measured run times.

    Raises:
        InputError: an option has a wrong type or value.
    """

    providers: tuple[str, ...] = ()
    threads: int | None = None
    optimize: bool = True
    allow_cpu: bool = False
    on_server_loss: OnServerLoss | str = OnServerLoss.RESUME
    deadline_s: float | None = None
    eager: bool | None = None
    require_server: bool = True
    heartbeat_s: float = 0.25
    patience_s: float = 1.0
    connect_timeout_s: float = 5.0
    security: ClientSecurity | None = None
    plan: int | None = None
    share: bool = True
    switching: SwitchPolicy = SwitchPolicy()  # noqa: RUF009  frozen
    link: LinkCost | None = None
    slowdown: float | WarmRunTimes = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.providers, str):
            raise InputError(f"providers are a tuple of names, like ({self.providers!r},)")
        if isinstance(self.link, str):
            raise InputError(f"link {self.link!r} is a string: use parse_link({self.link!r})")
        if self.on_server_loss not in tuple(OnServerLoss):
            raise InputError(
                f"on_server_loss must be resume, local or raise, not {self.on_server_loss!r}"
            )

    @property
    def engine(self) -> EngineOptions:
        """How onnxruntime runs the segments."""
        return EngineOptions(
            tuple(self.providers), self.threads, self.optimize, allow_cpu=self.allow_cpu
        )


def checked_s(name: str, seconds: float) -> float:
    """Check a number of seconds from a caller.

    Raises:
        InputError: it is not a finite number above 0.
    """
    if not isinstance(seconds, int | float | np.number) or not 0 < seconds < float("inf"):
        raise InputError(f"{name} must be a number of seconds above 0, not {seconds!r}")
    return float(seconds)
