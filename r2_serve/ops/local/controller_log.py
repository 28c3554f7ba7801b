"""Errors of autoscaling policies in the log of Serve's controller, the one place where Serve reports them.

While a policy fails, its application never runs, and the controller repeats the error ten times a second.
"""

from __future__ import annotations

import re
from pathlib import Path

from r2_serve.errors import ConfigError

_FAULT = re.compile(r"Exception updating application state\.\n(Traceback .*\n(?: .*\n)+)(\S.*)\n")
_PLACE = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
_IN_POLICY = "in get_decision_num_replicas"
_OVERLAP_BYTES = 50_000
"""Bytes that are read again, as a part of an error may have been written at the last reading."""


class PolicyFailed(ConfigError):
    """An autoscaling policy raises; the message has its error and the place."""


class ControllerLog:
    """The log of the Serve controller in the session directory of a cluster on this machine."""

    def __init__(self, session: Path) -> None:
        self._directory, self._num_read = session / "logs" / "serve", 0

    @classmethod
    def of_this_cluster(cls) -> ControllerLog:
        """The log of the cluster that this process is connected to."""
        from ray._private.worker import global_worker

        return cls(Path(global_worker.node.get_session_dir_path()))

    def check(self) -> None:
        """Reads what is new. Raises: PolicyFailed at the first error of a policy."""
        for path in self._directory.glob("controller_*.log"):
            with path.open("rb") as file:
                file.seek(max(0, self._num_read - _OVERLAP_BYTES))
                text = file.read().decode(errors="replace")
                self._num_read = file.tell()
            for traceback, error in _FAULT.findall(text):
                if _IN_POLICY in traceback:
                    file_name, line, function = _PLACE.findall(traceback)[-1]
                    place = f"{file_name}:{line}, {function}"
                    raise PolicyFailed(f"an autoscaling policy fails: {error} ({place}); see {path}")
