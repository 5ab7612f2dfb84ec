# Helpers of all test scripts. lib.nix puts before them: the timings in seconds, ADDRESSES, NODES, and CALLER, which is the
# machine that calls the gateway.
import json
from contextlib import contextmanager
from typing import Iterator

GATEWAY = "http://node-4:8080"
VOID: list[str] = []


def void(what: str, why: str) -> None:
    """Notes that a subtest could not be made; the last lines of the run name it."""
    VOID.append(f"{what}: {why}")


def report_void() -> None:
    for line in VOID:
        log.info(f"void: {line}")


def boot(*groups: list[str]) -> None:
    """Starts the machines, a group after the other: without KVM, six that boot at once are too slow."""
    for group in groups:
        for name in group:
            NODES[name].start()
        for name in group:
            NODES[name].wait_for_unit("multi-user.target", timeout=BOOT)


def curl(arguments: str) -> str:
    """Returns the body of the answer to a call by CALLER; fails unless the call succeeds."""
    return CALLER.succeed(f"curl --silent --show-error --fail --max-time {CALL} {arguments}")


def status(path: str) -> str:
    """Returns the status of the answer to a GET by the CALLER."""
    return CALLER.succeed(
        f"curl --silent --output /dev/null --write-out '%{{http_code}}' --max-time {CALL} '{GATEWAY}{path}'"
    )


def wait_for_answers(path: str, timeout: int, count: int = 1) -> None:
    """Waits until `count` GETs in a row succeed: with several instances, a single success may be luck."""
    call = f"curl --silent --fail --output /dev/null --max-time {CALL} '{GATEWAY}{path}'"
    CALLER.wait_until_succeeds(" && ".join([call] * count), timeout=timeout)


def reach(source: str, target: str, port: int) -> str:
    """Returns the state of a port, seen from another host: `open`, `refused` or `dropped`."""
    code, _ = NODES[source].execute(f"timeout 5 bash -c '</dev/tcp/{target}/{port}' 2> /dev/null")
    return {0: "open", 1: "refused", 124: "dropped"}[code]


def keys(service: str) -> list[str]:
    """Returns the registered addresses of a service, read with etcdctl."""
    prefix = f"/services/{service}/"
    out = NODES["node-0"].succeed(f"etcdctl get --prefix --keys-only {prefix}")
    return sorted(key.removeprefix(prefix) for key in out.split())


def wait_for_keys(service: str, addresses: list[str], timeout: int) -> None:
    """Waits until exactly these addresses are registered for a service."""

    def registered(last: bool) -> bool:
        found = keys(service)
        if last:
            log.info(f"{service}: found {found}, want {addresses}")
        return found == sorted(addresses)

    retry(registered, timeout)


def metric(node: str, port: int, name: str, **labels: str) -> float:
    """A metric's value on the admin port of a host's role; 0 while there is none yet."""
    text = NODES[node].succeed(f"curl --silent --fail --max-time {CALL} http://127.0.0.1:{port}/metrics")
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    for line in text.splitlines():
        if line.startswith(name + "{") and all(label in line for label in wanted):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


@contextmanager
def steady_calls(*paths: str) -> Iterator[None]:
    """Lets CALLER GET these paths until the block ends; each answer must be a complete 200."""
    urls = " ".join(f"'{GATEWAY}{path}'" for path in paths)
    CALLER.succeed("rm -f /tmp/calls /tmp/enough")
    CALLER.succeed(f"systemd-run --quiet --collect --unit=steady-calls steady-calls {urls}")
    CALLER.wait_until_succeeds("[ -s /tmp/calls ]", timeout=SETTLE)
    yield
    # the machines are slow: waits until there are enough calls after the fault
    CALLER.wait_until_succeeds("[ $(wc -l < /tmp/calls) -ge 30 ]", timeout=SETTLE)
    CALLER.succeed("touch /tmp/enough")
    CALLER.wait_until_fails("systemctl is-active --quiet steady-calls", timeout=SETTLE)
    answers = CALLER.succeed("cat /tmp/calls").splitlines()
    failed = [answer for answer in answers if answer.rstrip() != "200 0"]
    log.info(f"{len(answers)} calls, {len(failed)} failed")
    assert not failed, f"{len(failed)} of {len(answers)} calls failed: {failed[:10]}"


def wait_for_app(addresses: dict[str, list[str]]) -> None:
    """Waits until all roles are ready, and each service is registered at its addresses."""
    for unit, name in [
        ("etcd.service", "node-0"),
        ("postgresql.target", "node-0"),
        ("microservice-app-feed.service", "node-1"),
        ("microservice-app-profile.service", "node-2"),
        ("microservice-app-topic.service", "node-3"),
        ("microservice-app-apigateway.service", "node-4"),
    ]:
        if name in NODES:
            NODES[name].wait_for_unit(unit, timeout=BOOT)
    for service, expected in addresses.items():
        wait_for_keys(service, expected, timeout=SETTLE)


def put(path: str, record: dict[str, object]) -> None:
    """PUTs a record; fails unless the answer is an empty object."""
    answer = curl(f"-XPUT {GATEWAY}{path} -d '{json.dumps(record)}'")
    assert answer == "{}", answer


def three_curls() -> None:
    """Makes the three calls of the original's README; fails unless they print what it shows, byte for byte."""
    feeds = [(100, "hello world"), (101, "goodbye!")]
    for number, content in feeds:
        record = f'{{"id":{number},"user_id":123,"content":"{content}"}}'
        out = CALLER.succeed(f"curl -s -XPUT {GATEWAY}/api/feed/create_feed -d '{record}'")
        assert out == "{}", out
    out = CALLER.succeed(f'curl -s -XGET "{GATEWAY}/api/feed/get_feeds?user_id=123&&size=2"')
    assert out == TWO_FEEDS, out


# as in the original's README
TWO_FEEDS = """{
    "feeds": [
        {
            "id": 100,
            "user_id": 123,
            "content": "hello world"
        },
        {
            "id": 101,
            "user_id": 123,
            "content": "goodbye!"
        }
    ]
}"""


def check_sandboxes(*units: str) -> None:
    """Fails unless systemd's security score of each unit that runs is at most 2.0."""
    for machine in NODES.values():
        for unit in machine.succeed(
            f"systemctl list-units --plain --no-legend --type=service {' '.join(units)}"
        ).splitlines():
            machine.succeed(f"systemd-analyze security --no-pager --threshold=20 {unit.split()[0]}")
