# The test script of monitoring.nix; prelude.py comes before it.
import math
import re
import shlex
from typing import Any

PROMETHEUS = "http://127.0.0.1:9090"
GRAFANA = "http://127.0.0.1:3000"
REGISTERED = {
    "feed": [f"{ADDRESSES['node-1']}:8082"],
    "profile": [f"{ADDRESSES['node-2']}:8083"],
    "topic": [f"{ADDRESSES['node-3']}:8084"],
}
HERE = [ADDRESSES[name] for name in NODES]
TARGETS = sorted(
    [
        ("apigateway", f"{ADDRESSES['node-4']}:6060"),
        ("feed", f"{ADDRESSES['node-1']}:6062"),
        ("profile", f"{ADDRESSES['node-2']}:6063"),
        ("topic", f"{ADDRESSES['node-3']}:6064"),
        ("prometheus", "127.0.0.1:9090"),
        ("alertmanager", "127.0.0.1:9093"),
        ("etcd", f"{ADDRESSES['node-0']}:2381"),
        ("cadvisor", f"{ADDRESSES['node-1']}:9180"),
        ("cadvisor", f"{ADDRESSES['node-4']}:9180"),
    ]
    + [("node", f"{address}:9100") for address in HERE]
)
# what a healthy system may have none of: metrics, and parts of an expression
MAY_BE_ZERO = re.compile(
    "client_(breaker|retry|hedge|fallback|deadline_exceeded|limit_refused|connections)_"
    "|client_endpoints.*state\\)|container_oom_events|oom_kill|leader_changes|has_leader.*== 0|proposals_(failed|pending)"
    '|heartbeat_send_failures|slow_apply|grpc_code!="OK"|lease_(granted|revoked|expired)|timex_offset'
    "|node_disk_read|_(errs|drop)_total|RetransSegs|view_(limbo|ignored|resets|differences)"
    '|registration_state|code=~"|http_errors|http_slow|refused_total|connections_cut|in_flight|spans_(dropped|queued)'
    '|log_lines_dropped|outcome="error"|database_(connects|failovers)|unknown_outcomes|writes_queued'
)


def ask(path: str, **parameters: str) -> Any:
    """Returns the data of an answer of Prometheus."""
    given = " ".join(f"--data-urlencode {shlex.quote(f'{name}={value}')}" for name, value in parameters.items())
    out = monitor.succeed(
        f"curl --silent --max-time 60 --get {given} {PROMETHEUS}/api/v1/{path}".replace("match__", "match[]")
    )
    answer = json.loads(out)
    assert answer["status"] == "success", f"{path} {parameters}: {out}"
    return answer["data"]


def query(expr: str) -> list[tuple[dict[str, str], float]]:
    """Returns the series of an instant query."""
    return [(series["metric"], float(series["value"][1])) for series in ask("query", query=expr)["result"]]


def notifications(service: str) -> list[dict[str, Any]]:
    """Returns what the receiver was told of a service, in order; fails if a token is wrong."""
    lines = monitor.succeed("cat /tmp/alerts 2> /dev/null || true").splitlines()
    told = [json.loads(line) for line in lines]
    assert all(line["token"] == "Bearer secret-of-webhook-token" for line in told), told
    groups = [line["notification"] for line in told]
    return [group for group in groups if group["groupLabels"].get("service") == service]


def wait_for_notification(service: str, status: str, names: set[str]) -> dict[str, Any]:
    """Waits until a group of alerts of a service has this status and these names, and returns it."""
    found: list[dict[str, Any]] = []

    def told(last: bool) -> bool:
        for group in notifications(service):
            firing = {alert["labels"]["alertname"] for alert in group["alerts"]}
            if group["status"] == status and names <= firing:
                found.append(group)
                return True
        if last:
            log.info(f"{service}: {notifications(service)}")
        return False

    retry(told, 8 * SETTLE)
    return found[0]


def grafana(path: str) -> Any:
    """Returns what Grafana answers to its administrator."""
    out = monitor.succeed(
        f'curl --silent --fail --max-time 60 -u "admin:$(cat /var/lib/microservice-app-grafana/admin-password)"'
        f" {GRAFANA}{path}"
    )
    return json.loads(out)


def choices(dashboard: dict[str, Any]) -> dict[str, str]:
    """Returns the variables of a dashboard as the choice `All` sets them."""
    chosen: dict[str, str] = {}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] != "query":
            continue
        asked = fill(variable["query"]["query"], chosen)
        selector, label = asked.removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
        values = ask(f"label/{label}/values", match__=selector)
        assert values, f"{dashboard['title']}: {asked} finds nothing"
        escaped = [re.sub(r"[.*+?^${}()|\[\]\\]", r"\\\\\g<0>", value) for value in values]
        chosen[variable["name"]] = f"({'|'.join(escaped)})"
    return chosen


def fill(text: str, chosen: dict[str, str]) -> str:
    text = text.replace("$__rate_interval", "5m")
    for name, value in chosen.items():
        text = text.replace(f"${name}", value)
    return text


def wrong_with(expr: str) -> str | None:
    """Returns what is wrong with the answer to the query of a panel."""
    values = [value for _, value in query(expr)]
    if not values:
        return "no answer"
    if all(math.isnan(value) for value in values):
        return "no number"
    if not any(values) and not MAY_BE_ZERO.search(expr):
        return "only zeros"
    return None


boot(["node-0", "node-1", "node-4"], ["node-2", "node-3", "monitor"])

with subtest("every role becomes ready"):
    wait_for_app(REGISTERED)
    for unit in ["prometheus.service", "alertmanager.service", "receiver.service"]:
        monitor.wait_for_unit(unit, timeout=BOOT)
    wait_for_answers("/api/topic/list", timeout=SETTLE)
    monitor.succeed(f"systemd-run --quiet --unit=mixed-calls mixed-calls {GATEWAY}")

with subtest("every target is up, the processes of the application by discovery alone"):

    def targets_are_up(last: bool) -> bool:
        found = query("up")
        up = sorted((labels["job"], labels["instance"]) for labels, value in found if value == 1)
        if last:
            log.info(f"targets: {found}, want {TARGETS}")
        return up == TARGETS and len(found) == len(TARGETS)

    retry(targets_are_up, 4 * SETTLE)

with subtest("nothing is wrong: no alert of the application fires"):
    firing = query('ALERTS{alertstate="firing",component=~"services|registry|etcd|database"}')
    assert not firing, firing

with subtest("metrics are for the monitor, notifications and pages for those who may"):
    for source, target, port, expected in [
        ("monitor", "node-1", 6062, {"open"}),
        ("monitor", "node-1", 9100, {"open"}),
        ("monitor", "node-1", 9180, {"open"}),
        ("monitor", "node-0", 2381, {"open"}),
        ("monitor", "node-0", 2379, {"dropped"}),
        ("node-2", "node-1", 6062, {"dropped"}),
        ("node-2", "node-1", 9100, {"dropped"}),
        ("node-2", "node-1", 9180, {"dropped"}),
        ("node-2", "node-0", 2381, {"dropped"}),
        ("node-2", "monitor", 9090, {"dropped"}),
        ("node-2", "monitor", 9093, {"dropped"}),
        # refused where there is no Grafana
        ("node-2", "monitor", 3000, {"open", "refused"}),
    ]:
        state = reach(source, target, port)
        assert state in expected, f"{source} to {target}:{port}: {state}, want {expected}"

with subtest("a killed service fires ServiceDown at the receiver, grouped with what follows from it"):
    # systemd would have it back at once
    node_2.succeed(
        "mkdir -p /run/systemd/system/microservice-app-profile.service.d",
        "printf '[Service]\\nRestart=no\\n' > /run/systemd/system/microservice-app-profile.service.d/stays-down.conf",
        "systemctl daemon-reload",
        "systemctl kill --signal=KILL microservice-app-profile.service",
    )
    group = wait_for_notification("profile", "firing", {"ServiceDown"})
    assert group["receiver"] == "webhook", group
    assert group["groupLabels"] == {"component": "services", "service": "profile"}, group
    down = [alert for alert in group["alerts"] if alert["labels"]["alertname"] == "ServiceDown"]
    assert all(alert["labels"]["severity"] == "warning" for alert in down), down
    assert any(f"{ADDRESSES['node-2']}:6063" in alert["annotations"]["summary"] for alert in down), down
    # the other services are well
    assert notifications("feed") == [] and notifications("topic") == []

with subtest("the notification is resolved after the service's return"):
    node_2.succeed(
        "rm /run/systemd/system/microservice-app-profile.service.d/stays-down.conf",
        "systemctl daemon-reload",
        "systemctl start microservice-app-profile.service",
    )
    resolved = wait_for_notification("profile", "resolved", {"ServiceDown"})
    assert resolved["groupKey"] == group["groupKey"], resolved

with subtest("each query of each dashboard has an answer"):
    wait_for_answers("/api/profile/get_profile?user_id=1", timeout=SETTLE)
    monitor.sleep(60)
    wrong, queries = [], 0
    for text in DASHBOARDS:
        dashboard = json.loads(text)
        chosen = choices(dashboard)
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                queries += 1
                why = wrong_with(fill(target["expr"], chosen))
                if why:
                    wrong.append(f"{dashboard['title']}: {panel['title']}: {target['expr']}: {why}")
    monitor.succeed("touch /tmp/enough")
    log.info(f"{queries} queries")
    assert queries > 100, queries
    assert not wrong, "\n".join(wrong)
    # the check itself: it knows a metric that is not there, and one that is always zero
    assert wrong_with("no_such_metric") == "no answer"
    assert wrong_with("up * 0") == "only zeros"

# outside Nix there is no Grafana, and its program says so
NO_GRAFANA = "is not on this machine" in monitor.succeed("journalctl --no-pager --output=cat -u grafana.service")

with subtest("Grafana serves each dashboard, and its sources answer"):
    if NO_GRAFANA:
        void("Grafana serves each dashboard, and its sources answer", "no Grafana here")
    else:
        monitor.wait_for_open_port(3000, timeout=BOOT)
        monitor.wait_until_succeeds(f"curl --silent --fail {GRAFANA}/api/health", timeout=BOOT)
        monitor.fail(f"curl --silent --fail -u admin:admin {GRAFANA}/api/org")
        for text in DASHBOARDS:
            wanted = json.loads(text)
            served = grafana(f"/api/dashboards/uid/{wanted['uid']}")["dashboard"]
            assert served["title"] == wanted["title"], served["title"]
            assert len(served["panels"]) == len(wanted["panels"]), served["title"]
        assert grafana("/api/datasources/uid/prometheus/health")["status"] == "OK"
        body = json.dumps(
            {
                "from": "now-5m",
                "to": "now",
                "queries": [{"refId": "A", "datasource": {"uid": "prometheus"}, "expr": "sum(up)", "instant": True}],
            }
        )
        out = monitor.succeed(
            f'curl --silent --fail -u "admin:$(cat /var/lib/microservice-app-grafana/admin-password)"'
            f" -H 'content-type: application/json' -d {shlex.quote(body)} {GRAFANA}/api/ds/query"
        )
        assert json.loads(out)["results"]["A"]["status"] == 200, out

with subtest("the units are sandboxed"):
    units = ["prometheus.service", "alertmanager.service", "prometheus-node-exporter.service", "cadvisor.service"]
    check_sandboxes(*units, *([] if NO_GRAFANA else ["grafana.service"]), "'microservice-app-*'")
