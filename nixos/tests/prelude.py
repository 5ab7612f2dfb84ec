# Helpers of all test scripts. lib.nix puts the timings, in seconds, and ADDRESSES before them.
import json
from contextlib import contextmanager
from typing import Iterator

GATEWAY = "http://node-4:8080"
NODES = {
    "client": client,
    "node-0": node_0,
    "node-1": node_1,
    "node-2": node_2,
    "node-3": node_3,
    "node-4": node_4,
}


def curl(arguments: str) -> str:
    """Returns the body of the answer to a call by the client; fails unless the call succeeds."""
    return client.succeed(f"curl --silent --show-error --fail --max-time {CALL} {arguments}")


def status(path: str) -> str:
    """Returns the status of the answer to a GET by the client."""
    return client.succeed(
        f"curl --silent --output /dev/null --write-out '%{{http_code}}' --max-time {CALL} '{GATEWAY}{path}'"
    )


def wait_for_answers(path: str, timeout: int, count: int = 1) -> None:
    """Waits until `count` GETs in a row succeed: with several instances, a single success may be luck."""
    call = f"curl --silent --fail --output /dev/null --max-time {CALL} '{GATEWAY}{path}'"
    client.wait_until_succeeds(" && ".join([call] * count), timeout=timeout)


def reach(source: str, target: str, port: int) -> str:
    """Returns the state of a port, seen from another host: `open`, `refused` or `dropped`."""
    code, _ = NODES[source].execute(f"timeout 5 bash -c '</dev/tcp/{target}/{port}' 2> /dev/null")
    return {0: "open", 1: "refused", 124: "dropped"}[code]


def keys(service: str) -> list[str]:
    """Returns the registered addresses of a service, read with etcdctl."""
    prefix = f"/services/{service}/"
    out = node_0.succeed(f"etcdctl get --prefix --keys-only {prefix}")
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
    """Lets the client GET these paths until the block ends; each answer must be a complete 200."""
    urls = " ".join(f"'{GATEWAY}{path}'" for path in paths)
    client.succeed("rm -f /tmp/calls /tmp/enough")
    client.succeed(f"systemd-run --quiet --collect --unit=steady-calls steady-calls {urls}")
    client.wait_until_succeeds("[ -s /tmp/calls ]", timeout=SETTLE)
    yield
    # the machines are slow: waits until there are enough calls after the fault
    client.wait_until_succeeds("[ $(wc -l < /tmp/calls) -ge 30 ]", timeout=SETTLE)
    client.succeed("touch /tmp/enough")
    client.wait_until_fails("systemctl is-active --quiet steady-calls", timeout=SETTLE)
    answers = client.succeed("cat /tmp/calls").splitlines()
    failed = [answer for answer in answers if answer.rstrip() != "200 0"]
    log.info(f"{len(answers)} calls, {len(failed)} failed")
    assert not failed, f"{len(failed)} of {len(answers)} calls failed: {failed[:10]}"


def wait_for_app(addresses: dict[str, list[str]]) -> None:
    """Waits until all roles of the five hosts are ready, and each service is registered at its addresses."""
    for unit, machine in [
        ("etcd", node_0),
        ("microservice-app-feed", node_1),
        ("microservice-app-profile", node_2),
        ("microservice-app-topic", node_3),
        ("microservice-app-apigateway", node_4),
    ]:
        machine.wait_for_unit(f"{unit}.service", timeout=BOOT)
    for service, expected in addresses.items():
        wait_for_keys(service, expected, timeout=SETTLE)
