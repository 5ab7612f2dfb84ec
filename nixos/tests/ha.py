# The test script of ha.nix; prelude.py comes before it.
from typing import Any

LOCAL = "http://127.0.0.1:8080"
# how long a cluster of slow machines takes to be whole
LONG = 10 * SETTLE


def cluster(asked: str) -> list[dict[str, Any]]:
    """Returns what the Patroni of a member knows of the members."""
    code, out = NODES[asked].execute(f"curl --silent --max-time {CALL} http://{MEMBERS[asked]}:8008/cluster")
    return json.loads(out).get("members", []) if code == 0 and out else []


def leader(asked: str) -> str | None:
    """Returns the member that leads, as another one knows it."""
    names = [member["name"] for member in cluster(asked) if member["role"] in ("leader", "master", "primary")]
    return names[0] if names else None


def wait_until_whole() -> str:
    """Waits until one member leads and two follow, one of them as the synchronous standby; returns the leader."""

    def whole(last: bool) -> bool:
        found = cluster("db-0")
        if last:
            log.info(f"cluster: {found}")
        roles = sorted(member["role"] for member in found)
        running = all(member["state"] in ("running", "streaming") for member in found)
        timelines = {member.get("timeline") for member in found}
        return len(roles) == 3 and "leader" in roles and "sync_standby" in roles and running and len(timelines) == 1

    retry(whole, LONG)
    found = leader("db-0")
    assert found is not None
    return found


def acknowledged() -> int:
    return int(client.succeed("wc -l < /tmp/acknowledged"))


def wait_for_writes(what: str) -> None:
    """Waits until writes are acknowledged again."""
    before = acknowledged()

    def more(last: bool) -> bool:
        if last:
            log.info(f"{what}: {before} acknowledged before, {acknowledged()} now")
        return acknowledged() >= before + 5

    retry(more, LONG)


def wait_for_another_leader(lost: str, asked: str) -> str:
    """Waits until another member leads than one that is lost, and returns it."""
    found: list[str] = []

    def leads(last: bool) -> bool:
        name = leader(asked)
        if last:
            log.info(f"cluster: {cluster(asked)}")
        if name is None or name == lost:
            return False
        code, _ = NODES[name].execute(f"curl --silent --fail --max-time {CALL} http://{MEMBERS[name]}:8008/primary")
        if code == 0:
            found.append(name)
        return code == 0

    retry(leads, LONG)
    return found[0]


# members wait for each other
for name in MEMBERS:
    NODES[name].start()
for name in MEMBERS:
    NODES[name].wait_for_unit("etcd.service", timeout=BOOT)

with subtest("etcd has TLS between members and towards clients, and users"):
    db_0.succeed(
        "etcdctl role add patroni",
        "etcdctl role grant-permission patroni readwrite --prefix=true /service/",
        "etcdctl user add patroni:secret-of-etcd-patroni",
        "etcdctl user grant-role patroni patroni",
        "etcdctl role add services",
        "etcdctl role grant-permission services readwrite --prefix=true /services/",
        "etcdctl user add services:secret-of-etcd-services",
        "etcdctl user grant-role services services",
        "etcdctl user add root:secret-of-root",
        "etcdctl user grant-role root root",
        "etcdctl auth enable",
    )
    db_0.fail("etcdctl get /service/")
    db_0.wait_until_succeeds("etcdctl --user=root:secret-of-root endpoint health", timeout=2 * SETTLE)
    # without a certificate, and without TLS
    db_0.fail(f"curl --silent --fail --insecure --max-time {CALL} https://127.0.0.1:2379/version")
    db_0.fail(f"curl --silent --fail --max-time {CALL} http://127.0.0.1:2379/version")

with subtest("the three databases are a cluster with a synchronous standby"):
    first = wait_until_whole()
    # nobody has a password for nothing: not the services for the superuser, nobody without TLS
    settings = json.loads(NODES[first].succeed(f"curl --silent http://{MEMBERS[first]}:8008/config"))
    assert settings["synchronous_mode_strict"] and settings["failsafe_mode"], settings

client.start()
client.wait_for_unit("multi-user.target", timeout=BOOT)

with subtest("feed finds the primary, and the gateway finds feed"):
    client.wait_for_unit("microservice-app-feed.service", timeout=BOOT)
    client.wait_for_unit("microservice-app-apigateway.service", timeout=BOOT)
    client.succeed(f"systemd-run --quiet --unit=write-feeds write-feeds {LOCAL}")
    client.wait_until_succeeds("[ -s /tmp/acknowledged ]", timeout=LONG)
    wait_for_writes("the beginning")

with subtest("Patroni crashes alone: PostgreSQL goes on, with its shared memory, and stays the primary"):
    shared = "find /dev/shm -name 'PostgreSQL.*' | sort"
    segments = NODES[first].succeed(shared)
    assert segments
    timelines = {member["timeline"] for member in cluster(first)}
    pid = NODES[first].get_unit_info("patroni.service")["MainPID"]
    NODES[first].succeed(f"kill -KILL {pid}")
    NODES[first].wait_until_succeeds(
        f"curl --silent --fail --max-time {CALL} http://{MEMBERS[first]}:8008/primary", timeout=SETTLE
    )
    assert NODES[first].get_unit_info("patroni.service")["MainPID"] not in (pid, "0")
    assert NODES[first].succeed(shared) == segments
    wait_for_writes("after the end of Patroni")
    assert wait_until_whole() == first
    assert {member["timeline"] for member in cluster(first)} == timelines

with subtest("the ports of the members are for each other and for the client"):
    for source, target, port, expected in [
        ("client", "db-0", 5432, "open"),
        ("client", "db-0", 2379, "open"),
        ("client", "db-0", 2380, "dropped"),
        ("client", "db-0", 8008, "dropped"),
        ("db-1", "db-0", 8008, "open"),
        ("db-1", "db-0", 2380, "open"),
    ]:
        state = reach(source, target, port)
        assert state == expected, f"{source} to {target}:{port}: {state}, want {expected}"

with subtest("the host of the primary crashes, and another one takes over"):
    others = [name for name in MEMBERS if name != first]
    NODES[first].crash()
    second = wait_for_another_leader(first, others[0])
    wait_for_writes("after the crash")
    NODES[first].start()
    NODES[first].wait_for_unit("multi-user.target", timeout=BOOT)
    assert wait_until_whole() == second

with subtest("the host of the primary is cut off, and another one takes over"):
    others = [name for name in MEMBERS if name != second]
    NODES[second].block()
    third = wait_for_another_leader(second, others[0])
    wait_for_writes("after the cut")
    # the one that is cut off has stepped down: nothing is written there
    NODES[second].fail(f"curl --silent --fail --max-time {CALL} http://{MEMBERS[second]}:8008/primary")
    NODES[second].unblock()
    wait_until_whole()
    wait_for_writes("the end")

with subtest("no acknowledged write is lost"):
    client.succeed("touch /tmp/enough")
    client.wait_until_fails("systemctl is-active --quiet write-feeds", timeout=SETTLE)
    answers = client.succeed("cat /tmp/acknowledged").splitlines()
    wanted = [int(line.split()[0]) for line in answers]
    stored: set[int] = set()
    before = max(wanted) + 1000
    while True:
        page = json.loads(
            client.succeed(
                f"curl --silent --fail --max-time {CALL}"
                f" '{LOCAL}/api/feed/get_feeds?user_id=1&size=1000&before={before}'"
            )
        )["feeds"]
        if not page:
            break
        stored |= {feed["id"] for feed in page}
        before = page[0]["id"]
    lost = sorted(set(wanted) - stored)
    log.info(f"{len(wanted)} acknowledged, {len(stored)} stored, {len(lost)} lost")
    assert len(wanted) >= 20, wanted
    if lost:
        log.info("acknowledged and lost: " + ", ".join(line for line in answers if int(line.split()[0]) in lost))
        for machine in [*(NODES[name] for name in MEMBERS), client]:
            units = "--unit=patroni --unit=microservice-app-feed"
            log.info(machine.succeed(f"journalctl --quiet --no-pager --output=short-monotonic {units} | tail -n 600"))
    assert not lost, lost

with subtest("the units are sandboxed"):
    check_sandboxes("etcd.service", "patroni.service", "'microservice-app-*'")
