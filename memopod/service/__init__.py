"""What every long-running process of memopod shares, and nothing of what any of them does.

`setting` and `parse` turn flags and environment into a frozen dataclass (`ServesTls` and `SpeaksTlsToStore`
are those of certificates), `configure_logs` sets up structured logs, `Health` serves `/healthz`, `/readyz`
and `/metrics`, `run` starts a service and ends it in order on a signal, and `start` is what a service's
`main` does with all of these.
"""

from memopod.service.health import Health
from memopod.service.lifecycle import run
from memopod.service.logs import configure_logs
from memopod.service.settings import from_environment, parse, setting
from memopod.service.startup import Serve, start
from memopod.service.tls import ServesTls, SpeaksTlsToStore, check_tls_to

__all__ = [
    "Health",
    "Serve",
    "ServesTls",
    "SpeaksTlsToStore",
    "check_tls_to",
    "configure_logs",
    "from_environment",
    "parse",
    "run",
    "setting",
    "start",
]
