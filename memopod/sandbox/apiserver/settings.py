"""Settings of the sandbox's API server."""

from dataclasses import dataclass

from memopod.service import setting


@dataclass(frozen=True)
class Settings:
    """Flags and environment (`MEMOPOD_APISERVER_...`) of `python -m memopod.sandbox.apiserver`."""

    state: str = setting("", "folder of the sandbox: objects, certificates, tokens and kubeconfigs")
    listen_host: str = setting("127.0.0.1", "address to listen on; the certificate names this machine")
    listen_port: int = setting(0, "HTTPS port; 0 chooses a free one")
    advertise_host: str = setting(
        "127.0.0.1", "name or address that the kubeconfigs in the folder give; the certificate has it too"
    )
    history: int = setting(
        5000, "changes of each kind that are kept for watches; an older watch is answered with 410"
    )
    bookmark_seconds: float = setting(
        10.0, "seconds between bookmarks of a quiet watch; a real server sends one about every minute"
    )
    log_level: str = setting("info", "debug, info, warning or error")

    def __post_init__(self) -> None:
        if not self.state:
            raise ValueError("--state: expected the sandbox's folder, got nothing")
