#!/usr/bin/python
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: prom_ready
short_description: Wait until Prometheus is ready, its scrape jobs are up and an expression holds
version_added: 1.0.0
author: "slice_bench.sglang contributors (@slice-bench)"
description:
  - Waits until a Prometheus server says that it is ready (C(/-/ready)), then until every target of
    the named scrape jobs is up, then until
    a PromQL expression holds. It goes on as soon as all of it is so, and never changes anything.
  - When O(timeout) is over it fails and says which condition failed and why. For a target that is
    Prometheus' own error of the last scrape.
  - What waiting cannot mend fails at once. That is an expression that does not parse or gives
    neither an instant vector nor a scalar,
    credentials that are refused or missing (HTTP 401 and 403), a certificate that is not trusted, a
    redirect, and the wrong one of
    C(http://) and C(https://).
options:
  url:
    description:
      - Where Prometheus answers, as the target host sees it. A path prefix (C(http://host/prom))
        and an IPv6 address in brackets may be
        given.
      - Credentials in it (C(http://user:password@host)) are refused. Proxies of the environment are
        not used.
    type: str
    default: http://127.0.0.1:9090
  jobs:
    description:
      - Scrape jobs that have to be up, by their C(job_name) or by the label C(job) of their
        targets.
      - A job is up when it has a target and each of its targets is healthy. A job without a target
        is a failure.
    type: list
    elements: str
    default: []
  expression:
    description:
      - A PromQL expression that has to hold. It is evaluated as an instant query at the server's
        present time.
      - An instant vector holds as in an alerting rule, namely when it is not empty, whatever its
        values are. So compare, as in
        V(up{job="node"} == 1); without C(== 1) it would hold for a target that is down, too.
      - A scalar holds when it is neither 0 nor NaN. A comparison of scalars takes C(bool), as in
        V(scalar(sum(up\)\) >= bool 3).
      - One query may take at most 30 seconds.
    type: str
  timeout:
    description:
      - Seconds to wait for everything together, more than 0.
    type: float
    default: 60
  poll_interval:
    description:
      - Seconds between two looks, more than 0. When a look takes longer than this, the pause after
        it is as long as the look was.
    type: float
    default: 0.04
  url_username:
    description:
      - User name for basic authentication, which is sent with each request.
    type: str
  url_password:
    description:
      - Password for basic authentication.
    type: str
  bearer_token:
    description:
      - Token that is sent in a C(Bearer) authorization header. It excludes O(url_username) and
        O(url_password).
    type: str
  ca_path:
    description:
      - File on the target host with the PEM certificates to trust instead of the system's.
    type: path
  client_cert:
    description:
      - File on the target host with a PEM certificate that the server asks its clients for. It may
        hold the key too.
    type: path
  client_key:
    description:
      - File on the target host with the unencrypted PEM key of O(client_cert).
    type: path
  validate_certs:
    description:
      - Whether the server's certificate has to be trusted and to name the host.
    type: bool
    default: true
attributes:
  check_mode:
    support: full
    description:
      - Looks once and does not wait. RV(ready) and RV(reason) tell what it saw. It does not fail
        because something is not ready, since
        on a host that has not been prepared there is nothing to be ready; nor because a file of
        O(ca_path), O(client_cert) or
        O(client_key) is not there yet.
  diff_mode:
    support: none
    description: It changes nothing.
notes:
  - Runs with Python 3.9 or later and its standard library.
seealso:
  - module: ansible.builtin.uri
"""

EXAMPLES = r"""
- name: Prometheus is ready
  slice_bench.sglang.prom_ready:

- name: Both exporters are scraped
  slice_bench.sglang.prom_ready:
    jobs: [node, dcgm]
    timeout: 30

- name: The server's metrics have arrived
  slice_bench.sglang.prom_ready:
    expression: '{__name__=~"sglang[:_]prompt_tokens_total", container_run="{{ run.run_id }}"} > 0'
    timeout: 20

- name: A Prometheus behind a reverse proxy, with credentials and a private CA
  slice_bench.sglang.prom_ready:
    url: https://metrics.example.com/prometheus
    url_username: ansible
    url_password: "{{ prometheus_password }}"
    ca_path: /etc/ssl/certs/lab-ca.pem
"""

RETURN = r"""
ready:
  description: Whether everything that was asked for holds. It is false only in check mode and in a
    failure.
  returned: always
  type: bool
  sample: true
reason:
  description: Why RV(ready) is false, or null.
  returned: always
  type: str
  sample: >-
    Prometheus is not ready: nothing listens at http://127.0.0.1:9090 (connection refused); start
    Prometheus, or set url to where it
    listens
version:
  description: Prometheus' version, or null when it did not tell.
  returned: always
  type: str
  sample: 3.5.0
targets:
  description: The active targets of O(jobs), as last seen; empty without O(jobs).
  returned: always
  type: list
  elements: dict
  contains:
    job: {description: The label job., type: str, returned: always, sample: node}
    instance: {description: The label instance., type: str, returned: always, sample:
      "127.0.0.1:9100"}
    health: {description: "V(up), V(down), or V(unknown) before the first scrape.", type: str,
      returned: always, sample: up}
    last_error: {description: Prometheus' error of the last scrape; empty when there was none.,
      type: str, returned: always, sample: ""}
    last_scrape: {description: "Prometheus' time of the last scrape, or null before the first.",
      type: str, returned: always,
      sample: "2026-11-23T09:15:03.482910374Z"}
result:
  description: The samples of O(expression), as last seen; empty without O(expression).
  returned: always
  type: list
  elements: dict
  contains:
    metric: {description: The labels; empty for a scalar., type: dict, returned: always, sample:
      {__name__: up, job: node}}
    value: {description: "Prometheus' text of the value, such as V(1) or V(NaN); null for a native
      histogram.", type: str, returned: always,
      sample: "1"}
    timestamp: {description: Seconds since 1970., type: float, returned: always, sample:
      1795425303.482}
waited_s:
  description: Seconds from the first look to the end of the last.
  returned: always
  type: float
  sample: 1.272
polls:
  description: How many looks there were.
  returned: always
  type: int
  sample: 31
"""

import math
from typing import Any

from ..module_utils._prometheus_api import (
    DEFAULT_POLL_INTERVAL_S,
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    FinalError,
    LocalFileError,
    PrometheusClient,
    Readiness,
    Seen,
    url_secret,
)
from ..module_utils._told import ToldModule


def main() -> None:
    module = ToldModule(
        argument_spec={
            "url": {"type": "str", "default": DEFAULT_URL},
            "jobs": {"type": "list", "elements": "str", "default": []},
            "expression": {"type": "str"},
            "timeout": {"type": "float", "default": DEFAULT_TIMEOUT_S},
            "poll_interval": {"type": "float", "default": DEFAULT_POLL_INTERVAL_S},
            "url_username": {"type": "str"},
            "url_password": {"type": "str", "no_log": True},
            "bearer_token": {"type": "str", "no_log": True},
            "ca_path": {"type": "path"},
            "client_cert": {"type": "path"},
            "client_key": {"type": "path", "no_log": False},
            "validate_certs": {"type": "bool", "default": True},
        },
        mutually_exclusive=[("bearer_token", "url_username"), ("bearer_token", "url_password")],
        required_together=[("url_username", "url_password")],
        required_by={"client_key": ["client_cert"]},
        supports_check_mode=True,
    )
    params, seen = module.params, Seen()
    if secret := url_secret(params["url"]):
        # The url is refused; the result repeats the parameters all the same.
        module.no_log_values.add(secret)
    try:
        for name in ("timeout", "poll_interval"):
            if not (math.isfinite(params[name]) and params[name] > 0):
                raise FinalError(f"{name} is {params[name]}; give a number of seconds above 0")
        readiness = Readiness(_client(params), params["jobs"], params["expression"])
        seen = readiness.seen
        if module.check_mode:
            readiness.look(params["timeout"])
        else:
            readiness.wait(params["timeout"], params["poll_interval"])
    except FinalError as error:
        seen.reason = str(error)
        if not (module.check_mode and isinstance(error, LocalFileError)):
            module.fail_json(msg=f"{error}.", **seen.result())
    if seen.ready or module.check_mode:
        module.exit_json(changed=False, **seen.result())
    module.fail_json(msg=f"{seen.reason}.", **seen.result())


def _client(params: dict[str, Any]) -> PrometheusClient:
    return PrometheusClient(
        params["url"],
        username=params["url_username"],
        password=params["url_password"],
        bearer_token=params["bearer_token"],
        ca_path=params["ca_path"],
        client_cert=params["client_cert"],
        client_key=params["client_key"],
        validate_certs=params["validate_certs"],
    )


if __name__ == "__main__":
    main()
