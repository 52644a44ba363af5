"""Kubeflow's cache server takes other flags: each is accepted here, and what it means to memopod.

So the manifest of Kubeflow Pipelines works with another image and no other change: one replica, the
placeholder mode, and the database that the flags name. (backend/src/cache/main.go)
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from memopod.service import setting

CERTIFICATES = "/etc/webhook/certs"
"""Folder of the certificate files, fixed there."""
_DRIVERS = {"mysql": ("mysql", 3306), "pgx": ("postgresql", 5432), "postgres": ("postgresql", 5432),
            "postgresql": ("postgresql", 5432)}  # fmt: skip


def _flag(name: str, text: str, default: str | None = None) -> str | None:
    """Go reads one dash like two."""
    value: str | None = setting(default, text, aliases=[f"-{name}"])
    return value


@dataclass(frozen=True, kw_only=True)
class UpstreamSettings:
    """The flags of Kubeflow's cache server that have no name of their own here."""

    db_driver: str | None = _flag("db_driver", "Kubeflow's flag: mysql, or pgx for PostgreSQL.")
    db_host: str | None = _flag("db_host", "Kubeflow's flag: host of the database (mysql).")
    db_port: str | None = _flag("db_port", "Kubeflow's flag: port of the database.")
    db_name: str | None = _flag("db_name", "Kubeflow's flag: the database (cachedb); made if absent.")
    db_user: str | None = _flag("db_user", "Kubeflow's flag: user of the database (root).")
    db_password: str | None = _flag("db_password", "Kubeflow's flag: the password of that user.")
    db_group_concat_max_len: str | None = _flag("db_group_concat_max_len", "Kubeflow's flag: of no use here.")
    db_extra_params: str | None = _flag(
        "db_extra_params", 'Kubeflow\'s flag: a JSON object; "tls" is heeded (true, skip-verify), no other.'
    )
    namespace_to_watch: str | None = _flag(
        "namespace_to_watch",
        "Kubeflow's flag, as --watch-namespace; not given beside --db_host or its kin, nor a --strategy: "
        "kubeflow.",
    )
    kube_client_qps: str | None = _flag("kube_client_qps", "Kubeflow's flag: of no use here.")
    kube_client_burst: str | None = _flag("kube_client_burst", "Kubeflow's flag: of no use here.")
    logtostderr: bool | None = setting(None, "glog's flag: logs go to stderr.", aliases=["-logtostderr"])
    alsologtostderr: bool | None = setting(None, "glog's flag: of no use here.", aliases=["-alsologtostderr"])
    stderrthreshold: str | None = _flag("stderrthreshold", "glog's flag: of no use here.")
    v: str | None = _flag("v", "glog's flag: of no use here; see --log-level.")
    vmodule: str | None = _flag("vmodule", "glog's flag: of no use here; see --log-level.")
    log_dir: str | None = _flag("log_dir", "glog's flag: logs go to stderr.")
    log_backtrace_at: str | None = _flag("log_backtrace_at", "glog's flag: of no use here.")
    log_link: str | None = _flag("log_link", "glog's flag: logs go to stderr.")
    logbuflevel: str | None = _flag("logbuflevel", "glog's flag: of no use here.")

    @property
    def is_upstream(self) -> bool:
        """Whether the command line is one for Kubeflow's cache server: it names a database part by part."""
        parts = (self.db_driver, self.db_host, self.db_port, self.db_name, self.db_user, self.db_password)
        return any(part is not None for part in parts)

    @property
    def upstream_namespace(self) -> str:
        """The namespace that Kubeflow's flags name, empty for all."""
        default = "kubeflow" if self.is_upstream else ""
        return default if self.namespace_to_watch is None else self.namespace_to_watch

    def database_url(self) -> str:
        """The database that the flags name, with Kubeflow's defaults. Raises ValueError."""
        driver = self.db_driver or "mysql"
        if driver not in _DRIVERS:
            raise ValueError(f"--db_driver: expected one of {', '.join(_DRIVERS)}, got {driver!r}")
        kind, port = _DRIVERS[driver]
        text = self.db_port or str(port)
        if not text.isascii() or not text.isdigit():
            raise ValueError(f"--db_port: expected a number, got {text!r}")
        from sqlalchemy import URL  # the janitor reads settings too, and has no database

        url = URL.create(
            kind,
            username=self.db_user or "root",
            password=self.db_password or None,
            host=self.db_host or kind,
            port=int(text),
            database=self.db_name or "cachedb",
            query={"tls": tls} if (tls := _tls(_parameters(self.db_extra_params))) else {},
        )
        return url.render_as_string(hide_password=False)

    def without_meaning(self) -> Iterator[tuple[str, str]]:
        """The flags that were given and change nothing, each with why. Raises ValueError for a bad value."""
        if self.db_group_concat_max_len is not None:
            yield "--db_group_concat_max_len", "no query concatenates rows"
        parameters = _parameters(self.db_extra_params)
        if parameters.keys() - {"tls"} or parameters.get("tls") == "preferred":
            yield "--db_extra_params", "connections have fixed parameters (utf8mb4), but for tls"
        for name in ("kube_client_qps", "kube_client_burst"):
            if getattr(self, name) is not None:
                yield f"--{name}", "calls to the API server are bounded by --concurrency"
        for name in (
            "logtostderr",
            "alsologtostderr",
            "stderrthreshold",
            "log_dir",
            "log_link",
            "logbuflevel",
        ):
            if getattr(self, name) is not None:
                yield f"--{name}", "logs go to stderr"
        for name in ("v", "vmodule", "log_backtrace_at"):
            if getattr(self, name) is not None:
                yield f"--{name}", "--log-level sets what is logged"


def _parameters(text: str | None) -> dict[str, Any]:
    try:
        given = json.loads(text) if text else {}
    except ValueError as error:
        raise ValueError("--db_extra_params: expected a JSON object") from error
    if not isinstance(given, dict):
        raise ValueError("--db_extra_params: expected a JSON object")  # noqa: TRY004 (bad input)
    return given


def _tls(parameters: Mapping[str, Any]) -> str | None:
    """What `tls` asks for, None for nothing: no connection is plain that was to be encrypted."""
    asked = str(parameters.get("tls", "false")).lower()
    if asked in ("false", "preferred"):
        return None
    if asked not in ("true", "skip-verify"):
        raise ValueError("--db_extra_params: expected tls to be true, skip-verify, preferred or false")
    return asked
