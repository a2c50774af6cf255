"""The one tree of errors a user can meet.

    OffloadError
    ├── InputError            what the caller gave is wrong: mend it first
    ├── BundleError           a bundle is missing, damaged, or not the one asked for: redeploy
    ├── ServerError           the server cannot be reached, went away, or refused: try again
    └── DeadlineError         no answer in the time allowed: try again, or allow more

Every message is one sentence: what is wrong, where, and what to do about it.
`retry` says whether the same call may succeed later with nothing changed by the caller.
`option` names the option that mends it, where there is one; commands show it as their flag.
"""


class OffloadError(Exception):
    """Base of all errors raised on purpose by this project."""

    retry: bool = False
    option: str | None = None


class InputError(OffloadError, ValueError):
    """A file, name, shape, number or option given by the caller cannot be used."""


class BundleError(OffloadError):
    """A bundle is missing, damaged, of another version, or not held by the server."""


class ServerError(OffloadError, ConnectionError):
    """The server cannot be reached, vanished in the middle, or refused the session."""

    retry = True


class DeadlineError(OffloadError, TimeoutError):
    """The answer did not come within the time allowed."""

    retry = True
