# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A small client of Prometheus' HTTP API, and the wait until a server, its scrape jobs and an
expression are as they should be.

:class:`PrometheusClient` asks one thing at a time; :class:`Readiness` looks and waits. An answer
that is not Prometheus' is an error like any other: nothing that arrives can end in a traceback or
pass for readiness.

http.client of the standard library speaks for it, over a connection of its own for each question:
ansible.module_utils.urls would load a second HTTP stack, and cryptography where the host has it,
into two modules of each run. All times are seconds.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import math
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

from ._contract.texts import one_line, read_json_text

DEFAULT_URL = "http://127.0.0.1:9090"
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_POLL_INTERVAL_S = 0.04

# /-/ready answers at once or not at all; a connection that hangs is given up for a new one after
# this time.
READY_LIMIT_S = 2.0
# An expression may take long. What takes longer than this is no readiness condition.
API_LIMIT_S = 30.0
# Kept back from the wait for one last look at its end.
LAST_LOOK_S = 0.05

READY_BYTES = 64 * 1024
API_BYTES = 16 * 1024 * 1024

# "Prometheus Server is Ready." and, of an agent, "Prometheus Agent is Ready." (web/web.go).
READY_SENTENCE = b"is Ready"
NEVER_SCRAPED = "0001-01-01T00:00:00Z"
NAMED_TARGETS = 5

# What a document of another shape leads to, numbers beyond a float among it.
_MALFORMED = (AttributeError, LookupError, TypeError, ValueError, ArithmeticError)

Clock = Callable[[], float]


class PrometheusError(Exception):
    """Its text is one sentence, without the full stop, that names the thing and the remedy."""


class FinalError(PrometheusError):
    """Waiting cannot mend it: a wrong option, refused credentials, a certificate, an expression
    that does not parse.
    """


class LocalFileError(FinalError):
    """A file that an option names is missing or cannot be used. Before a host is prepared that is
    to be expected.
    """


class NotYetError(PrometheusError):
    """What was asked for does not hold now, and may hold later."""


class NoAnswerError(NotYetError):
    """There was no HTTP answer."""


class AnswerTimeoutError(NoAnswerError):
    """The answer did not come, or not to its end, in time."""


@dataclass(frozen=True)
class Endpoint:
    """A parsed ``url``. ``prefix`` is its path without the last slash, ``shown`` the url as
    messages name it.
    """

    scheme: str
    host: str
    port: int
    host_header: str
    prefix: str

    @property
    def shown(self) -> str:
        return f"{self.scheme}://{self.host_header}{self.prefix}"


def url_secret(url: str) -> str | None:
    """What stands before the ``@`` of a url's host, which is never to be shown; None when there is
    nothing.
    """
    authority = re.split(r"[/?#]", url.split("://", 1)[-1].lstrip("/"), maxsplit=1)[0]
    return authority.rpartition("@")[0] or None


def parse_url(url: str) -> Endpoint:
    """Raise :class:`FinalError` for anything but ``http(s)://host[:port][/prefix]``."""
    if url_secret(url) is not None:
        raise FinalError(
            "url holds credentials before the @; take them out and give them as url_username and"
            " url_password, or bearer_token"
        )
    # Beyond this point it may still hold a secret where none belongs (a query, a path with an @),
    # so a refused url is not repeated.
    wanted = "url must be http://HOST[:PORT][/PREFIX] or https://..., such as " + DEFAULT_URL
    if not re.fullmatch(r"[\x21-\x7e]+", url):
        raise FinalError(f"{wanted}; this one is empty or holds spaces or characters outside ASCII")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise FinalError(f"{wanted}; the host or port of this one is not valid") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise FinalError(f"{wanted}; this one lacks the scheme, the host or a usable port")
    if parts.query or parts.fragment:
        raise FinalError(f"{wanted}; take out the part after the path (? or #)")
    return Endpoint(
        scheme=parts.scheme,
        host=unquote(parts.hostname),  # the zone of a link-local address: [fe80::1%25eth0]
        port=port or (443 if parts.scheme == "https" else 80),
        host_header=parts.netloc,
        prefix=parts.path.rstrip("/"),
    )


def tls_context(
    ca_path: str | None, client_cert: str | None, client_key: str | None, validate_certs: bool
) -> ssl.SSLContext:
    """Raise :class:`LocalFileError` naming the option whose file cannot be used."""

    def no_passphrase() -> str:
        # Without this OpenSSL would ask on the terminal, and wait.
        raise LocalFileError(
            f"client_key {client_key or client_cert} is encrypted; give an unencrypted key that"
            " only the task's user can read"
        )

    try:
        # With ca_path only its certificates are trusted, as ansible.builtin.uri has it.
        context = ssl.create_default_context(cafile=ca_path or None)
    except (OSError, ValueError) as error:
        raise LocalFileError(
            f"ca_path {ca_path} cannot be used ({reason_of(error)}); it must be a file of PEM"
            " certificates"
        ) from None
    if not validate_certs:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if client_cert:
        try:
            context.load_cert_chain(client_cert, client_key, password=no_passphrase)
        except (OSError, ValueError) as error:
            key = f"with client_key {client_key}" if client_key else "without client_key"
            raise LocalFileError(
                f"client_cert {client_cert} {key} cannot be used ({reason_of(error)}); give PEM"
                " files of a certificate and its key"
            ) from None
    return context


def reason_of(error: Exception) -> str:
    """An exception in words, without Python's decoration."""
    if isinstance(error, ssl.SSLError):
        return one_line((error.reason or str(error)).replace("_", " ").lower())
    if isinstance(error, OSError) and error.strerror:
        return one_line(error.strerror)
    return one_line(str(error) or type(error).__name__)


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    location: str


@dataclass(frozen=True)
class Target:
    """A scrape target. ``health`` is up, down or unknown (not scraped yet); ``last_scrape`` is
    Prometheus' own timestamp, or None.
    """

    job: str
    instance: str
    health: str
    last_error: str
    last_scrape: str | None
    # job_name of its scrape_config; relabelling can give the label job another value
    pool: str = ""
    interval: str = ""

    def belongs_to(self, job: str) -> bool:
        return job in (self.pool, self.job)

    def result(self) -> dict[str, Any]:
        return {
            key: getattr(self, key)
            for key in ("job", "instance", "health", "last_error", "last_scrape")
        }

    def complaint(self) -> str:
        if self.health == "unknown" and not self.last_error:
            every = f" (scrape interval {self.interval})" if self.interval else ""
            return f"target {self.instance} has not been scraped yet{every}"
        return (
            f"target {self.instance} is {self.health}:"
            f" {one_line(self.last_error) or 'Prometheus gives no error'}"
        )


@dataclass(frozen=True)
class Sample:
    """One sample of an expression. ``value`` is Prometheus' text of it (``"1"``, ``"NaN"``); None
    for a native histogram.
    """

    metric: dict[str, str]
    value: str | None
    timestamp: float


@dataclass(frozen=True)
class QueryResult:
    kind: str  # vector or scalar
    samples: list[Sample]

    @property
    def holds(self) -> bool:
        """A vector as in an alerting rule: when it is not empty. A scalar when it is neither 0 nor
        NaN, which an empty vector becomes.
        """
        if self.kind == "vector":
            return bool(self.samples)
        number = float(self.samples[0].value or "nan")
        return number != 0 and not math.isnan(number)


def _within(limit_s: float, ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns or raises, or TimeoutError after so long. It runs in a thread: a resolver
    has no time limit, and that of a socket starts again with each byte.
    """
    outcome: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put(ask())
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        answer = outcome.get(timeout=max(limit_s, 0))
    except queue.Empty:
        raise TimeoutError("timed out") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


class PrometheusClient:
    """One server. Each call has its own deadline on ``clock`` and raises :class:`NotYetError` or
    :class:`FinalError`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        username: str | None = None,
        password: str | None = None,
        bearer_token: str | None = None,
        ca_path: str | None = None,
        client_cert: str | None = None,
        client_key: str | None = None,
        validate_certs: bool = True,
        clock: Clock = time.monotonic,
    ) -> None:
        self.endpoint = parse_url(url)
        self._clock = clock
        self._headers = {
            "Host": self.endpoint.host_header,
            "Accept": "application/json, text/plain",
            "User-Agent": "slice_bench.sglang",
            "Connection": "close",
        }
        self._secrets: list[str] = []
        self._credentials: str | None = None
        self._authorise(username, password, bearer_token)
        self._tls = (
            tls_context(ca_path, client_cert, client_key, validate_certs)
            if self.endpoint.scheme == "https"
            else None
        )

    def _authorise(self, username: str | None, password: str | None, token: str | None) -> None:
        if token is not None:
            if not re.fullmatch(r"[\x21-\x7e]+", token):
                raise FinalError(
                    "bearer_token must be visible ASCII characters with no space or line break;"
                    " pass it through the filter trim"
                )
            self._credentials = "bearer_token"
            self._headers["Authorization"] = f"Bearer {token}"
            self._secrets = [token]
        elif username is not None and password is not None:
            if not username or ":" in username:
                raise FinalError(
                    "url_username is empty or holds a colon, which HTTP cannot send; give the name"
                    " that Prometheus knows"
                )
            encoded = base64.b64encode(f"{username}:{password}".encode()).decode()
            self._credentials = "url_username and url_password"
            self._headers["Authorization"] = f"Basic {encoded}"
            self._secrets = [encoded, password] if password else [encoded]

    # --- what is asked ---

    def ready(self, deadline: float) -> bytes:
        """The body of ``/-/ready``, when it says 200."""
        answer = self._call(
            "GET", "/-/ready", min(deadline, self._clock() + READY_LIMIT_S), limit=READY_BYTES
        )
        if answer.status == 200:
            return answer.body
        if answer.status == 503:
            raise NotYetError(
                f"{self.endpoint.shown} answers HTTP 503, it is starting or stopping; its log shows"
                " how far it is"
            )
        if answer.status == 400 and b"HTTPS" in answer.body:
            raise FinalError(f"{self.endpoint.shown} speaks TLS; write https:// in url")
        if answer.status == 404:
            raise NotYetError(
                f"{self.endpoint.shown}/-/ready answers HTTP 404, so no Prometheus is there; check"
                " the port and path prefix in url"
            )
        raise NotYetError(
            f"{self.endpoint.shown}/-/ready answers HTTP {answer.status}; check that url leads to"
            " Prometheus, and its log"
        )

    def version(self, deadline: float) -> str:
        path = "/api/v1/status/buildinfo"
        data = self._api("GET", path, min(deadline, self._clock() + READY_LIMIT_S))
        version = data.get("version") if isinstance(data, dict) else None
        if not isinstance(version, str) or not version:
            raise self._malformed(path)
        return one_line(version)

    def targets(self, deadline: float) -> list[Target]:
        """Every active target."""
        path = "/api/v1/targets"
        data = self._api("GET", f"{path}?state=active", min(deadline, self._clock() + API_LIMIT_S))
        active = data.get("activeTargets") if isinstance(data, dict) else None
        if not isinstance(active, list):
            raise self._malformed(path)
        try:
            return [_target(item) for item in active]
        except _MALFORMED:
            raise self._malformed(path) from None

    def query(self, expression: str, deadline: float) -> QueryResult:
        """Evaluate ``expression`` at the server's present time."""
        path = "/api/v1/query"
        limit = min(deadline, self._clock() + API_LIMIT_S)
        # So that the server ends a query when this client gives it up.
        form = {"query": expression, "timeout": f"{max(limit - self._clock(), 0.001):.3f}"}
        try:
            data = self._api("POST", path, limit, body=urlencode(form).encode())
        except _BadRequestError as error:
            raise FinalError(
                f"Prometheus cannot evaluate the expression {one_line(expression)!r}"
                f" ({error.words}); correct it"
            ) from None
        try:
            kind = data["resultType"]
            if kind == "scalar":
                return QueryResult(kind, [_sample({}, data["result"])])
            if kind == "vector":
                samples = [
                    _sample(item["metric"], item.get("value"), item.get("histogram"))
                    for item in data["result"]
                ]
                return QueryResult(kind, samples)
        except _MALFORMED:
            raise self._malformed(path) from None
        if kind in ("matrix", "string"):
            what = {"matrix": "a range vector", "string": "a string"}[kind]
            raise FinalError(
                f"the expression {one_line(expression)!r} gives {what}; give one with an instant"
                " vector or a scalar"
            )
        raise self._malformed(path)

    # --- how it is asked ---

    def _malformed(self, path: str) -> NotYetError:
        return NotYetError(
            f"{self.endpoint.shown}{path} does not answer as Prometheus does; check that url leads"
            " to Prometheus"
        )

    def _api(self, method: str, target: str, deadline: float, body: bytes | None = None) -> Any:
        """The ``data`` of an API answer."""
        answer = self._call(method, target, deadline, limit=API_BYTES, body=body)
        path = target.partition("?")[0]
        try:
            document = read_json_text(answer.body)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            document = {}
        if answer.status == 200 and document.get("status") == "success":
            return document.get("data")
        text = self._harmless(document["error"]) if isinstance(document.get("error"), str) else ""
        if text:
            what = f"{self.endpoint.shown}{path} answers HTTP {answer.status}: {text}"
            raise _BadRequestError(what, text) if answer.status == 400 else NotYetError(what)
        if answer.status != 200:
            raise NotYetError(
                f"{self.endpoint.shown}{path} answers HTTP {answer.status}; check that url leads to"
                " Prometheus, and its log"
            )
        raise self._malformed(path)

    def _harmless(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "********")
        return one_line(text)

    def _call(
        self, method: str, target: str, deadline: float, *, limit: int, body: bytes | None = None
    ) -> Answer:
        shown = self.endpoint.shown
        started = self._clock()
        left = deadline - started
        try:
            answer = _within(left, lambda: self._exchange(method, target, left, limit, body))
        except (OSError, http.client.HTTPException, ValueError) as error:
            # http.client lets a chunk of less than no bytes end in a ValueError.
            raise self._explained(error, self._clock() - started) from None
        if answer.status in (401, 403, 407):
            if self._credentials:
                raise FinalError(
                    f"{shown} answers HTTP {answer.status}, it does not accept the"
                    f" {self._credentials} given; correct them"
                )
            raise FinalError(
                f"{shown} answers HTTP {answer.status}, it wants credentials; set url_username and"
                " url_password, or bearer_token"
            )
        if 300 <= answer.status < 400:
            # Not followed: credentials would go where they were not meant to.
            address = re.sub(r"//[^/]*@", "//", answer.location)
            where = self._harmless(re.split("[?#]", address, maxsplit=1)[0]) or "somewhere else"
            raise FinalError(
                f"{shown} redirects to {where}; set url to where Prometheus itself answers"
            )
        if len(answer.body) > limit:
            what = f"{shown}{target.partition('?')[0]} answers with more than {limit // 1024} KiB"
            if limit == READY_BYTES:
                raise NotYetError(
                    f"{what}, as Prometheus never does; check that url leads to Prometheus"
                )
            # Downloading that again and again is no way to wait.
            raise FinalError(
                f"{what}; narrow the expression down, or check that url leads to Prometheus"
            )
        return answer

    def _exchange(
        self, method: str, target: str, limit_s: float, limit: int, body: bytes | None
    ) -> Answer:
        endpoint = self.endpoint
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        # Longer than the caller waits: a connection that was given up ends by itself.
        patience_s = limit_s + 1
        connection = (
            http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=patience_s)
            if self._tls is None
            else http.client.HTTPSConnection(
                endpoint.host, endpoint.port, timeout=patience_s, context=self._tls
            )
        )
        with contextlib.closing(connection):
            connection.request(method, endpoint.prefix + target, body, headers)
            response = connection.getresponse()
            content = response.read(limit + 1)
            if len(content) <= limit and response.length:
                raise http.client.IncompleteRead(b"", response.length)
            return Answer(response.status, content, response.headers.get("Location") or "")

    def _explained(self, error: Exception, took: float) -> PrometheusError:
        """What went wrong below HTTP, with the remedy."""
        shown = self.endpoint.shown
        if isinstance(error, ssl.SSLError):
            return _explained_tls(shown, error)
        if isinstance(error, TimeoutError):
            return AnswerTimeoutError(
                f"{shown} did not answer within {took:.1f} s; check the server's load, and the"
                " network and firewall on the way"
            )
        if isinstance(error, UnicodeError):
            return FinalError(f"the host name in url {shown} is not valid; correct url")
        if isinstance(error, socket.gaierror):
            return NoAnswerError(
                f"the host name in {shown} does not resolve ({reason_of(error)}); correct url or"
                " the resolver"
            )
        if isinstance(error, ConnectionRefusedError):
            return NoAnswerError(
                f"nothing listens at {shown} (connection refused); start Prometheus, or set url to"
                " where it listens"
            )
        if isinstance(error, http.client.BadStatusLine) and str(error).startswith("\x15\x03"):
            return FinalError(f"{shown} speaks TLS; write https:// in url")
        if isinstance(
            error,
            (http.client.RemoteDisconnected, http.client.IncompleteRead, ConnectionError),
        ):
            return NoAnswerError(
                f"{shown} closed the connection before it had answered; check Prometheus' log"
            )
        if isinstance(error, (http.client.HTTPException, ValueError)):
            return NoAnswerError(
                f"what listens at {shown} does not speak HTTP as it should; check the port in url"
            )
        return NoAnswerError(
            f"{shown} cannot be reached ({reason_of(error)}); check url and the network"
        )


def _explained_tls(shown: str, error: ssl.SSLError) -> PrometheusError:
    """What went wrong in TLS, with the remedy."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return FinalError(
            f"the certificate of {shown} is not trusted ({one_line(error.verify_message)}); "
            "name its CA with ca_path, or set validate_certs: false where that is acceptable"
        )
    text = reason_of(error)
    if "wrong version number" in text or "record layer failure" in text or "http request" in text:
        return FinalError(f"{shown} does not speak TLS ({text}); write http:// in url")
    if "certificate" in text or "unknown ca" in text or "handshake failure" in text:
        return FinalError(
            f"{shown} refuses the TLS handshake ({text}); set client_cert and client_key to"
            " ones that it accepts"
        )
    return NoAnswerError(
        f"the TLS connection to {shown} failed ({text}); check that a TLS server listens there"
    )


class _BadRequestError(NotYetError):
    """HTTP 400, with Prometheus' own words."""

    def __init__(self, message: str, words: str) -> None:
        super().__init__(message)
        self.words = words


def _target(item: dict[str, Any]) -> Target:
    labels = item["labels"]
    pool = str(item.get("scrapePool") or "")
    health = item["health"]
    if not isinstance(health, str) or not health:
        raise TypeError
    scraped = item.get("lastScrape")
    return Target(
        job=str(labels.get("job") or pool),
        instance=str(labels.get("instance") or item.get("scrapeUrl") or ""),
        health=health,
        last_error=str(item.get("lastError") or ""),
        last_scrape=str(scraped) if scraped and scraped != NEVER_SCRAPED else None,
        pool=pool,
        interval=str(item.get("scrapeInterval") or ""),
    )


def _sample(metric: dict[str, Any], point: Any, histogram: Any = None) -> Sample:
    """Raise one of _MALFORMED for what is not a sample."""
    labels = {str(name): str(value) for name, value in metric.items()}
    found = histogram if histogram is not None else point
    if not isinstance(found, list):
        raise TypeError
    timestamp, value = found
    if histogram is not None:
        return Sample(labels, None, float(timestamp))
    if not isinstance(value, str):
        raise TypeError
    float(value)
    return Sample(labels, value, float(timestamp))


@dataclass
class Seen:
    """What the latest look saw. ``reason`` says why ``ready`` is false."""

    ready: bool = False
    reason: str | None = None
    version: str | None = None
    targets: list[Target] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    waited_s: float = 0.0
    polls: int = 0

    def result(self) -> dict[str, Any]:
        return {
            "ready": self.ready,
            "reason": self.reason,
            "version": self.version,
            "targets": [target.result() for target in self.targets],
            "result": [dataclasses.asdict(sample) for sample in self.samples],
            "waited_s": round(self.waited_s, 3),
            "polls": self.polls,
        }


class _UnmetError(Exception):
    """A condition that does not hold: which one, and why."""


class Readiness:
    """Looks at a server in order: its own readiness, then the jobs and the expression that have to
    hold beyond it. Readiness that was seen once is not asked for again; jobs and the expression
    have to hold in the same look.
    """

    def __init__(
        self,
        client: PrometheusClient,
        jobs: Sequence[str] = (),
        expression: str | None = None,
        *,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.client = client
        self.jobs = jobs
        self.expression = expression
        self.seen = Seen()
        self._clock = clock
        self._sleep = sleep
        self._is_ready = False
        self._asked_version = False

    def look(self, timeout_s: float) -> Seen:
        """Look once, for at most ``timeout_s``. Raise :class:`FinalError` for what waiting cannot
        mend.
        """
        started = self._clock()
        try:
            self._look(started + timeout_s)
        except _UnmetError as error:
            self.seen.reason = "{}: {}".format(*error.args)
        finally:
            self.seen.waited_s = self._clock() - started
        return self.seen

    def wait(self, timeout_s: float, poll_interval_s: float = DEFAULT_POLL_INTERVAL_S) -> Seen:
        """Look until all holds or ``timeout_s`` have passed. Raise :class:`FinalError` for what
        waiting cannot mend.
        """
        started = self._clock()
        deadline = started + timeout_s
        unmet: _UnmetError | None = None
        try:
            while True:
                looked = self._clock()
                try:
                    self._look(deadline)
                    return self.seen
                except _UnmetError as error:
                    # A look that the end of the wait cut short says less than the one before.
                    cut_short = (
                        isinstance(error.__cause__, AnswerTimeoutError)
                        and self._clock() >= deadline
                    )
                    unmet = unmet if unmet and cut_short else error
                now = self._clock()
                # A server that takes long to answer is not kept busy for more than half of the
                # time.
                busy = 0.0 if isinstance(unmet.__cause__, NoAnswerError) else now - looked
                pause = min(max(poll_interval_s, busy), deadline - now - LAST_LOOK_S)
                if pause <= 0:
                    self.seen.reason = "{0} after {2:.1f} s: {1}".format(*unmet.args, now - started)
                    return self.seen
                self._sleep(pause)
        finally:
            self.seen.waited_s = self._clock() - started

    def _look(self, deadline: float) -> None:
        self.seen.polls += 1
        subject = "Prometheus is not ready"
        try:
            if not self._is_ready:
                self._see_ready(deadline)
                self._is_ready = True
            if self.jobs:
                subject = _named("Job {} is not up", "Jobs {} are not up", self.jobs)
                self._see_jobs(deadline)
            if self.expression is not None:
                subject = f"The expression {one_line(self.expression)!r} does not hold"
                self._see_expression(self.expression, deadline)
        except NotYetError as error:
            # Whatever was asked: a server that gives no answer is not ready.
            raise _UnmetError(
                "Prometheus is not ready" if isinstance(error, NoAnswerError) else subject,
                str(error),
            ) from error
        self.seen.ready = True
        self.seen.reason = None

    def _see_ready(self, deadline: float) -> None:
        body = self.client.ready(deadline)
        if not self._asked_version:
            self._asked_version = True
            try:
                self.seen.version = self.client.version(deadline)
            except NotYetError:
                # The version is for information; an answer without it is judged by its text.
                self.seen.version = None
        if self.seen.version is None and READY_SENTENCE not in body:
            raise NotYetError(
                f"{self.client.endpoint.shown} answers HTTP 200 to /-/ready, but not as Prometheus"
                " does; check that url leads to Prometheus"
            )

    def _see_jobs(self, deadline: float) -> None:
        active = self.client.targets(deadline)
        jobs = list(dict.fromkeys(self.jobs))
        self.seen.targets = [
            target for target in active if any(target.belongs_to(job) for job in jobs)
        ]
        empty = [job for job in jobs if not any(target.belongs_to(job) for target in active)]
        sick = [target for target in self.seen.targets if target.health != "up"]
        if not empty and not sick:
            return
        why = []
        if empty:
            others = sorted({target.pool or target.job for target in active})
            known = f"the jobs with targets are {', '.join(others)}" if others else "no job has one"
            has = _named("job {} has", "jobs {} have", empty)
            why.append(
                f"{has} no target ({one_line(known)}); check the name, and scrape_configs of"
                " prometheus.yml"
            )
        if sick:
            complaints = [target.complaint() for target in sick[:NAMED_TARGETS]]
            if len(sick) > NAMED_TARGETS:
                complaints.append(f"and {len(sick) - NAMED_TARGETS} more")
            why.append(
                f"{', '.join(complaints)}; check that the target runs and that Prometheus"
                " reaches it"
            )
        unmet = [
            job for job in jobs if job in empty or any(target.belongs_to(job) for target in sick)
        ]
        raise _UnmetError(_named("Job {} is not up", "Jobs {} are not up", unmet), "; ".join(why))

    def _see_expression(self, expression: str, deadline: float) -> None:
        result = self.client.query(expression, deadline)
        self.seen.samples = result.samples
        if result.holds:
            return
        if result.kind == "vector":
            page = f"{self.client.endpoint.shown}/graph"
            why = (
                "its result is empty, as no series has its names and labels or none passes its"
                f" comparison; query its parts at {page}"
            )
        else:
            why = (
                f"its value is {result.samples[0].value}; a scalar holds when it is neither 0"
                " nor NaN"
            )
        raise _UnmetError(f"The expression {one_line(expression)!r} does not hold", why)


def _named(one: str, many: str, names: Sequence[str]) -> str:
    return (one if len(names) == 1 else many).format(
        ", ".join(repr(one_line(name)) for name in names)
    )
