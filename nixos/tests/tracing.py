# The test script of tracing.nix; prelude.py comes before it.
from typing import Any

ZIPKIN = "http://127.0.0.1:9411"
OPENSEARCH = "http://127.0.0.1:9200"
FEEDS = "/api/feed/get_feeds?user_id=123&size=2"
PROFILE = "/api/profile/get_profile?user_id=123"
REGISTERED = {"feed": [f"{ADDRESSES['node-1']}:8082"], "profile": [f"{ADDRESSES['node-2']}:8083"]}


def ask(url: str) -> Any:
    """Returns what Zipkin or OpenSearch answers; None while it fails."""
    code, out = tracer.execute(f"curl --silent --fail --max-time {CALL} '{url}'")
    return json.loads(out) if code == 0 else None


def traces() -> list[list[dict[str, Any]]]:
    return ask(f"{ZIPKIN}/api/v2/traces?limit=1000&lookback=3600000") or []


def services(trace: list[dict[str, Any]]) -> set[str]:
    return {span["localEndpoint"]["serviceName"] for span in trace}


def wait_for_traces(what: str, expected: list[set[str]]) -> None:
    """Waits until Zipkin has exactly the traces whose spans are of these services."""

    def stored(last: bool) -> bool:
        found = sorted(sorted(services(trace)) for trace in traces())
        if last:
            log.info(f"{what}: found {found}")
        return found == sorted(sorted(names) for names in expected)

    retry(stored, 4 * SETTLE)


boot(["node-0", "node-1", "node-4"], ["node-2", "tracer"])

with subtest("Zipkin answers, with OpenSearch behind it"):
    tracer.wait_for_unit("opensearch.service", timeout=BOOT)
    tracer.wait_until_succeeds(f"curl --silent --fail {ZIPKIN}/health", timeout=BOOT)
    assert ask(f"{ZIPKIN}/health")["status"] == "UP"

with subtest("every role is ready, and nobody has called it"):
    wait_for_app(REGISTERED)
    # topic is not here, and the gateway says so
    node_4.wait_until_succeeds(
        "test \"$(curl --silent http://127.0.0.1:6060/readyz | grep -v topic)\" = ready", timeout=SETTLE
    )
    assert traces() == [], traces()

with subtest("the three curls of the original's README are three traces"):
    three_curls()
    wait_for_traces("three curls", [{"apigateway", "feed"}] * 3)

with subtest("the spans are in OpenSearch"):
    indices = ask(f"{OPENSEARCH}/_cat/indices/zipkin-span-*?format=json")
    assert len(indices) >= 1, indices
    spans = ask(f"{OPENSEARCH}/zipkin-span-*/_count")["count"]
    # a span of the gateway's, one of its call, one of feed's; three times
    assert spans == sum(len(trace) for trace in traces()) == 9, spans

with subtest("a profile is one trace of three services"):
    put("/api/profile/put_profile", {"user_id": 123, "name": "Ada", "company": "AE", "title": "Countess"})
    assert len(json.loads(curl(f"'{GATEWAY}{PROFILE}'"))["feeds"]) == 2
    wait_for_traces(
        "profile", [{"apigateway", "feed"}] * 3 + [{"apigateway", "profile"}, {"apigateway", "profile", "feed"}]
    )

with subtest("the job draws who calls whom, and deletes what is old"):
    tracer.require_unit_state("microservice-app-dependencies.timer", "active")
    tracer.succeed(f"curl --silent --fail -X PUT {OPENSEARCH}/zipkin-span-2020-01-01")
    assert ask(f"{ZIPKIN}/api/v2/dependencies?endTs=$(date +%s)000&lookback=86400000") in ([], None)
    tracer.succeed("systemctl start microservice-app-dependencies.service", timeout=BOOT)
    now = tracer.succeed("date +%s").strip()

    def linked(last: bool) -> bool:
        links = ask(f"{ZIPKIN}/api/v2/dependencies?endTs={now}000&lookback=86400000") or []
        found = {(link["parent"], link["child"]): link["callCount"] for link in links}
        if last:
            log.info(f"links: {found}")
        return found == {("apigateway", "feed"): 3, ("apigateway", "profile"): 2, ("profile", "feed"): 1}

    retry(linked, SETTLE)
    tracer.fail(f"curl --silent --fail {OPENSEARCH}/zipkin-span-2020-01-01")

with subtest("the monitor finds Zipkin's metrics"):
    assert "zipkin_collector_spans_total" in tracer.succeed(f"curl --silent --fail {ZIPKIN}/prometheus")

with subtest("Zipkin's port is open for the roles, OpenSearch's for nobody"):
    for source, port, expected in [
        ("node-2", 9411, "open"),
        ("node-0", 9411, "dropped"),
        ("node-2", 9200, "dropped"),
        ("node-2", 9300, "dropped"),
    ]:
        state = reach(source, "tracer", port)
        assert state == expected, f"{source} to tracer:{port}: {state}, want {expected}"

with subtest("Zipkin away costs no call"):
    with steady_calls(FEEDS, PROFILE):
        tracer.succeed("systemctl stop zipkin.service opensearch.service")
        tracer.sleep(OUTAGE)
    # what is dropped meanwhile is counted
    dropped = metric("node-4", 6060, "trace_spans_dropped_total") > 0
    with steady_calls(FEEDS, PROFILE):
        tracer.succeed("systemctl start opensearch.service zipkin.service", timeout=BOOT)
        tracer.wait_until_succeeds(f"curl --silent --fail {ZIPKIN}/health", timeout=BOOT)
    before = len(traces())
    curl(f"'{GATEWAY}{FEEDS}'")

    def more(_: bool) -> bool:
        return len(traces()) > before

    retry(more, SETTLE)
    log.info(f"spans dropped meanwhile: {dropped}")

with subtest("the units are sandboxed"):
    check_sandboxes("zipkin.service", "opensearch.service", "'microservice-app-*'")
