"""The doctor's command: each finding is provoked, its remedy is followed, and the finding is gone."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import time
import warnings
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import airflow as airflow_package
import pytest
from airflow.models import Pool, Variable
from airflow.providers_manager import ProvidersManager
from airflow.secrets.environment_variables import EnvironmentVariablesBackend

from airflow_provider_geminiimg.__main__ import main
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.runtime.root_variable import RootVariable

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")


class Doctor:
    """The command, run in this process.

    :param connect: makes a connection.
    :param sandbox: the gateway.
    :param root: URI of the root.
    """

    def __init__(
        self,
        connect: Callable[..., str],
        sandbox: Sandbox,
        root: str,
        tmp_path: Path,
        patch: pytest.MonkeyPatch,
        output: pytest.CaptureFixture[str],
    ) -> None:
        self.connect, self.sandbox, self.root, self.tmp_path, self.patch = connect, sandbox, root, tmp_path, patch
        self._output = output

    def connection(self, gateway: str = "1min", **changes: Any) -> None:
        """Make the default connection, with these fields changed; ``extra`` adds to the extra."""
        fields = self.sandbox.connection(gateway)
        extra = {**fields.pop("extra"), **changes.pop("extra", {})}
        self.connect("geminiimg_default", **{**fields, **changes, "extra": extra})

    def run(self, *arguments: str) -> tuple[int, list[dict[str, str]]]:
        """The exit status, and the findings."""
        self._output.readouterr()
        status = main(["doctor", "--json", *arguments])
        lines = [line for line in self._output.readouterr().out.splitlines() if line.startswith('{"check"')]
        return status, [json.loads(line) for line in lines]


@pytest.fixture
def doctor(
    airflow: AirflowHarness,
    connect: Callable[..., str],
    sandbox: Sandbox,
    local_root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Doctor:
    """A healthy installation."""
    for name in (*PROXIES, *CERTIFICATES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")  # the command sets it, and it must not stay
    monkeypatch.setenv("AIRFLOW__CORE__PARALLELISM", "8")
    made = Doctor(connect, sandbox, local_root, tmp_path, monkeypatch, capsys)
    made.connection()
    return made


def test_a_healthy_installation_has_no_error_and_no_warning_and_nothing_is_bought(doctor: Doctor) -> None:
    status, findings = doctor.run("--output-path", (doctor.tmp_path / "out").as_uri())
    assert status == 0
    assert {finding["level"] for finding in findings} == {"ok", "skipped"}
    assert [finding["check"] for finding in findings if finding["level"] == "skipped"] == ["API server", "triggerer"]
    assert doctor.sandbox.ledger() == []
    assert [*open_store(doctor.root, AIRFLOW_OPENERS).keys("")] == []


# Each returns what undoes it, as the remedy says, or None if the end of a `MonkeyPatch` context does.
Provoke = Callable[[Doctor, pytest.MonkeyPatch], "Callable[[], object] | None"]


def environ(**values: str) -> Provoke:
    def provoke(_: Doctor, patch: pytest.MonkeyPatch) -> None:
        for name, value in values.items():
            patch.setenv(name, value)

    return provoke


def connection(gateway: str = "1min", **changes: Any) -> Provoke:
    def provoke(doctor: Doctor, _: pytest.MonkeyPatch) -> Callable[[], object]:
        doctor.connection(gateway, **changes)
        return doctor.connection

    return provoke


def hidden(module: str) -> Provoke:
    """A module that can't be imported."""

    def provoke(_: Doctor, patch: pytest.MonkeyPatch) -> None:
        patch.setitem(sys.modules, module, None)  # type: ignore[arg-type]

    return provoke


def newer_airflow(_: Doctor, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(airflow_package, "__version__", "3.99.0")


def newer_python(_: Doctor, patch: pytest.MonkeyPatch) -> None:
    version = namedtuple("version", "major minor micro releaselevel serial")
    patch.setattr(sys, "version_info", version(3, 99, 0, "final", 0))


def older_package(_: Doctor, patch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    patch.setattr(importlib.metadata, "version", lambda name: "0.1" if name == "httpx" else real(name))


def missing_package(_: Doctor, patch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "pydantic":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    patch.setattr(importlib.metadata, "version", version)


def only_files(_: Doctor, patch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    patch.setattr(importlib.metadata, "requires", requires)


def not_registered(_: Doctor, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ProvidersManager, "providers", {})


def no_plugin(_: Doctor, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ProvidersManager, "plugins", [])


def root_below_a_file(doctor: Doctor, patch: pytest.MonkeyPatch) -> None:
    (doctor.tmp_path / "file").write_text("")
    patch.setenv("AIRFLOW__GEMINIIMG__ROOT", (doctor.tmp_path / "file" / "root").as_uri())


def s3_gallery_root(doctor: Doctor, patch: pytest.MonkeyPatch) -> None:
    doctor.connect("aws_default", conn_type="aws", login="test", password="test")
    patch.setenv("AIRFLOW__GEMINIIMG__GALLERY_ROOTS", "s3://aws_default@images/")


def another_ledger(doctor: Doctor, _: pytest.MonkeyPatch) -> Callable[[], object]:
    name = RootVariable(doctor.root).name
    open_store(doctor.root, AIRFLOW_OPENERS).create("root.json", b'{"id": "this"}')
    Variable.set(name, json.dumps({"id": "that"}))
    return lambda: Variable.delete(name)


def no_ledger(doctor: Doctor, _: pytest.MonkeyPatch) -> Callable[[], object]:
    name = RootVariable(doctor.root).name
    Variable.set(name, json.dumps({"id": "this", "host": socket.gethostname()}))

    def restore() -> None:
        open_store(doctor.root, AIRFLOW_OPENERS).create("root.json", b'{"id": "this"}')

    return restore


def wrong_clock(seconds: float) -> Provoke:
    def provoke(_: Doctor, patch: pytest.MonkeyPatch) -> None:
        real = time.time
        patch.setattr(time, "time", lambda: real() + seconds)

    return provoke


def both(*provokes: Provoke) -> Provoke:
    def provoke(doctor: Doctor, patch: pytest.MonkeyPatch) -> Callable[[], object]:
        cures = [cure for each in provokes if (cure := each(doctor, patch)) is not None]
        return lambda: [cure() for cure in cures]

    return provoke


def output_below_a_file(doctor: Doctor, _: pytest.MonkeyPatch) -> Callable[[], object]:
    file = doctor.tmp_path / "file"
    file.write_text("")
    return file.unlink


def no_connection(doctor: Doctor, _: pytest.MonkeyPatch) -> Callable[[], object]:
    return lambda: doctor.connect("other", **doctor.sandbox.connection("apimaster"))


def no_pool(_: Doctor, __: pytest.MonkeyPatch) -> Callable[[], object]:
    return lambda: Pool.create_or_update_pool("fewer", 2, "", include_deferred=False)


def empty_pool(_: Doctor, __: pytest.MonkeyPatch) -> Callable[[], object]:
    Pool.create_or_update_pool("empty", 0, "", include_deferred=False)
    return lambda: Pool.create_or_update_pool("empty", 4, "", include_deferred=False)


def remote_gateway(doctor: Doctor, _: pytest.MonkeyPatch) -> Callable[[], object]:
    """A gateway that is not on this machine, so that a proxy would be used. Nothing leaves it: no proxy listens."""
    doctor.connection(host="https://gateway.invalid")
    return doctor.connection


@dataclass(frozen=True)
class Case:
    """A finding.

    :param check: the check that finds it.
    :param level: how bad it is.
    :param says: text of the message.
    :param remedy: text of the remedy.
    :param provoke: what causes it.
    :param arguments: of the command.
    """

    check: str
    level: str
    says: str
    remedy: str
    provoke: Provoke
    arguments: Sequence[str] = ()


CELERY = {"AIRFLOW__CORE__EXECUTOR": "LocalExecutor,team1=CeleryExecutor:fast"}
DEFAULT = "connection geminiimg_default"
CASES: Mapping[str, Case] = {
    "a newer Airflow": Case(
        "versions", "warning", "Airflow 3.99.0, which is not tested", "newer version", newer_airflow
    ),
    "a newer Python": Case("versions", "warning", "Python 3.99.0, which is not tested", "Use a Python", newer_python),
    "an old package": Case("packages", "error", "httpx 0.1 is installed", "pip install", older_package),
    "a missing package": Case("packages", "error", "pydantic is not installed", "pip install", missing_package),
    "no Pillow": Case("packages", "warning", "Pillow", "[thumbnails]", hidden("PIL")),
    "only the files": Case("packages", "error", "metadata is missing", "pip install", only_files),
    "not registered": Case("provider", "error", "does not know the provider", "pip install", not_registered),
    "no plugin": Case("provider", "error", "has not registered the gallery", "pip install", no_plugin),
    "no FastAPI": Case(
        "provider",
        "warning",
        "The gallery can't be loaded",
        "install Airflow completely",
        hidden("airflow_provider_geminiimg.gallery.app"),
    ),
    "a wrong setting": Case(
        "settings",
        "error",
        "keep_records_days = 3",
        "may pay again",
        environ(AIRFLOW__GEMINIIMG__KEEP_RECORDS_DAYS="3"),
    ),
    "a root of no store": Case(
        "root",
        "error",
        "cannot hold the ledger",
        "exclusive creation",
        environ(AIRFLOW__GEMINIIMG__ROOT="ftp://host/x"),
    ),
    "a root that can't be written": Case("root", "error", "Creating", "", root_below_a_file),
    "a folder for several machines": Case("root", "warning", "on other machines", "to a bucket", environ(**CELERY)),
    "another ledger": Case("root identity", "error", "is not the one", "delete Airflow's Variable", another_ledger),
    "no ledger": Case("root identity", "error", "There is no root.json", "restore it", no_ledger),
    "a clock that is late": Case("root clock", "warning", "differ by about", "NTP", wrong_clock(-60.0)),
    "a clock that is wrong": Case("root clock", "error", "differ by about", "NTP", wrong_clock(999.0)),
    "an output below a file": Case(
        "URIs",
        "error",
        "cannot be written to",
        "",
        output_below_a_file,
        ("--output-path", "file://{tmp_path}/file/out"),
    ),
    "a missing provider": Case(
        "URIs",
        "warning",
        "requires the amazon provider",
        "apache-airflow-providers-amazon",
        both(s3_gallery_root, hidden("airflow.providers.amazon.aws.hooks.s3")),
    ),
    "a proxy": Case(
        "proxy",
        "warning",
        "HTTPS_PROXY",
        "directly",
        both(environ(https_proxy="http://user:canary-secret@127.0.0.1:9"), remote_gateway),
    ),
    "a SOCKS proxy": Case(
        "proxy", "error", "socksio", "httpx[socks]", both(environ(all_proxy="socks5://127.0.0.1:9"), remote_gateway)
    ),
    "a proxy of an unknown kind": Case(
        "proxy", "error", "(socks4)", "http, https", both(environ(all_proxy="socks4://127.0.0.1:9"), remote_gateway)
    ),
    "a proxy without an address": Case(
        "proxy", "error", "(no valid address)", "", both(environ(https_proxy="http://pro[xy"), remote_gateway)
    ),
    "no certificates": Case("TLS", "error", "nothing that exists", "SSL_CERT_FILE", environ(SSL_CERT_FILE="/no.pem")),
    "no folder of certificates": Case("TLS", "error", "nothing", "SSL_CERT_DIR", environ(SSL_CERT_DIR="/no:/none")),
    "a folder that is not mounted": Case(
        "URIs", "warning", "/no/where of gallery_roots", "Mount", environ(AIRFLOW__GEMINIIMG__GALLERY_ROOTS="/no/where")
    ),
    "a setting that is no value of its kind": Case(
        "settings", "error", "gallery_tabs can't be read", "Correct", environ(AIRFLOW__GEMINIIMG__GALLERY_TABS="maybe")
    ),
    "a secret in the root": Case(
        "settings",
        "error",
        "cannot contain a password",
        "",
        environ(AIRFLOW__GEMINIIMG__ROOT="s3://AK:canarysecret@bucket/x"),
    ),
    "a pool without slots": Case(
        "limits geminiimg_default", "error", "has no slots", "airflow pools set", empty_pool, ("--pool", "empty")
    ),
    "certificates that are none": Case(
        "TLS", "error", "can't be loaded", "SSL_CERT_FILE", environ(SSL_CERT_FILE=__file__)
    ),
    "certificates of others": Case(
        "TLS", "warning", "REQUESTS_CA_BUNDLE", "Set SSL_CERT_FILE", environ(REQUESTS_CA_BUNDLE=__file__)
    ),
    "no connection": Case(
        "connection other",
        "error",
        "there is no Airflow connection",
        "Create it",
        no_connection,
        ("--conn-id", "other"),
    ),
    "another kind of connection": Case(
        DEFAULT, "error", "has type 'http'", "Correct the connection", connection(conn_type="http")
    ),
    "a field that nothing reads": Case(
        DEFAULT, "warning", "budgett", "Correct the connection", connection(extra={"budgett": 3})
    ),
    "a refused key": Case(
        DEFAULT, "error", "does not accept the API key", "key", connection(password="bad-canary-key")
    ),
    "no such gateway": Case(DEFAULT, "error", "not", "", connection(host="http://127.0.0.1:9")),
    "a model that is not served": Case(
        DEFAULT, "warning", "does not list the default model", "model", connection(extra={"model": "gemini-none-image"})
    ),
    "a price that is not known": Case(
        DEFAULT, "warning", "is not known, so costs", "prices", connection(extra={"price_currency": "credits"})
    ),
    "a cap without a price": Case(
        DEFAULT,
        "error",
        "every task is refused: daily_budget",
        "prices",
        connection(extra={"price_currency": "credits", "daily_budget": 9}),
    ),
    "calls that are not encrypted": Case(
        DEFAULT,
        "warning",
        "not encrypted",
        "https",
        connection(host="http://gateway.invalid", extra={"allow_http": True}),
    ),
    "limits for each process": Case(
        "limits geminiimg_default",
        "warning",
        "shared_limits is off",
        "Switch shared_limits on",
        both(environ(**CELERY), connection(extra={"shared_limits": False})),
    ),
    "more tasks than requests at once": Case(
        "limits geminiimg_default",
        "warning",
        "Up to 8 tasks run at once, and the connection sends 2",
        "a pool of 2 slots",
        connection(extra={"max_concurrency": 2}),
    ),
    "more tasks than calls": Case(
        "limits geminiimg_default",
        "warning",
        "allows 4 calls per minute",
        "Raise requests_per_minute",
        connection("apimaster", extra={"requests_per_minute": 4}),
    ),
    "a small triggerer": Case(
        "limits geminiimg_default",
        "warning",
        "waits for 2 images",
        "[triggerer] capacity",
        environ(AIRFLOW__TRIGGERER__CAPACITY="2"),
    ),
    "no such pool": Case(
        "limits geminiimg_default", "error", "no pool 'fewer'", "airflow pools set", no_pool, ("--pool", "fewer")
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_finding_is_provoked_and_gone_when_its_remedy_was_followed(doctor: Doctor, name: str) -> None:
    case = CASES[name]
    arguments = [each.format(tmp_path=doctor.tmp_path) for each in case.arguments]

    def found() -> tuple[int, list[dict[str, str]]]:
        status, findings = doctor.run(*arguments)
        assert "canary" not in json.dumps(findings)
        print(*(finding for finding in findings if finding["level"] != "ok"), sep="\n")
        return status, [each for each in findings if each["check"] == case.check and case.says in each["message"]]

    try:
        with pytest.MonkeyPatch.context() as patch:
            cure = case.provoke(doctor, patch)
            status, findings = found()
            assert [each["level"] for each in findings] == [case.level]
            assert case.remedy in findings[0]["remedy"]
            assert status == 1 or case.level != "error"
        if cure is not None:
            cure()
        assert found()[1] == []
    finally:
        with contextlib.suppress(KeyError):
            Variable.delete(RootVariable(doctor.root).name)


def test_requirements_of_developers_and_of_other_pythons_are_none(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        'httpx<0.1; extra == "dev"',
        'httpx<0.1; python_version < "3"',
        'httpx<0.1; extra == "amazon" and python_version < "3"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: lines)
    _, findings = doctor.run()
    assert [each["level"] for each in findings if each["check"] == "packages"] == ["ok"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ['httpx<0.1; extra == "amazon"'])
    _, findings = doctor.run()
    assert [each["level"] for each in findings if each["check"] == "packages"] == ["warning"]


@pytest.mark.parametrize("module", ["httpx", "pydantic", "airflow.providers.common.compat.sdk", "packaging"])
def test_a_module_that_is_missing_is_a_finding_and_the_other_checks_are_made(tmp_path: Path, module: str) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from airflow_provider_geminiimg.__main__ import main\n"
        "sys.exit(main(['doctor', '--json']))"
    )
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite://"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    findings = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    assert done.returncode == 1
    assert any("can't be imported" in each["message"] for each in findings), done.stdout + done.stderr
    assert findings[-1]["check"] == "triggerer"


def test_a_gateway_behind_a_cache_or_without_its_list_of_models_is_no_error(doctor: Doctor) -> None:
    doctor.sandbox.faults(route="onemin.models", status=503, times=9)
    status, findings = doctor.run()
    found = {each["message"]: each["level"] for each in findings if each["check"] == DEFAULT}
    [level] = [level for message, level in found.items() if "its list of models could not be read" in message]
    assert (status, level) == (0, "warning")


def test_the_checks_of_a_root_that_cannot_be_used_are_skipped(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    root_below_a_file(doctor, monkeypatch)
    _, findings = doctor.run("--api-conn-id", "none")
    levels = {each["check"]: each["level"] for each in findings}
    assert levels["root"] == "error"
    assert levels["root identity"] == levels["root clock"] == levels["API server"] == "skipped"


def test_a_root_of_another_airflow_is_not_called_known(doctor: Doctor) -> None:
    open_store(doctor.root, AIRFLOW_OPENERS).create("root.json", b'{"id": "this"}')
    _, findings = doctor.run()
    [message] = [each["message"] for each in findings if each["check"] == "root identity"]
    assert "not by this Airflow" in message


def test_a_warning_of_other_code_is_no_finding(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Backend(EnvironmentVariablesBackend):  # type: ignore[misc]
        def get_connection(self, *args: Any, **kwargs: Any) -> Any:
            warnings.warn("https://vault/v1?token=canary-vault", DeprecationWarning, stacklevel=2)
            return super().get_connection(*args, **kwargs)

    monkeypatch.setattr(EnvironmentVariablesBackend, "get_connection", Backend.get_connection)
    _, findings = doctor.run()
    assert "canary" not in json.dumps(findings)


def test_a_pool_of_as_many_slots_as_requests_ends_the_warning(doctor: Doctor) -> None:
    doctor.connection(extra={"max_concurrency": 2})
    Pool.create_or_update_pool("images", 2, "", include_deferred=False)
    _, findings = doctor.run("--pool", "images")
    assert {each["level"] for each in findings if each["check"].startswith("limits")} == {"ok"}
