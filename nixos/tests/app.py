# The test script of app.nix; prelude.py comes before it.

FEEDS = "/api/feed/get_feeds?user_id=123&size=2"
PROFILE = "/api/profile/get_profile?user_id=123"
TOPIC = "/api/topic/view?topic_id=1"
BY_HAND = "microservice-app-feed-by-hand"
FEED_1 = f"{ADDRESSES['node-1']}:8082"
FEED_2 = f"{ADDRESSES['node-2']}:8082"
REGISTERED = {
    "feed": [FEED_1],
    "profile": [f"{ADDRESSES['node-2']}:8083"],
    "topic": [f"{ADDRESSES['node-3']}:8084", f"{ADDRESSES['node-3']}:8184"],
}


def start_feed_by_hand() -> None:
    """Starts a second feed instance on node-2, on the shared database, and waits until it is called."""
    node_2.succeed(
        f"systemd-run --quiet --collect --unit={BY_HAND} --property=Type=notify"
        f" --setenv=MSA__REGISTRY__TTL_S={TTL} --setenv=MSA__REGISTRY__KEEPALIVE_MS={TTL * 1000 // 3}"
        f" --setenv=MSA__STORE__PASSWORD_FILE=/var/lib/secrets/db-password"
        f" --setenv=MSA__STORE__TIMEOUT_MS={CALL * 1000}"
        f" microservice-app feed --addr :8082 --etcd-addr {ADDRESSES['node-0']}:2379"
        f" --store postgres://app@{ADDRESSES['node-0']}/msa"
    )
    wait_for_keys("feed", [FEED_1, FEED_2], timeout=SETTLE)
    # the gateway calls an instance as soon as it has seen it and connected to it
    before = feed_calls("node-2", "GetFeeds")

    def called(_: bool) -> bool:
        status(FEEDS)
        return feed_calls("node-2", "GetFeeds") > before

    retry(called, SETTLE)


def answered(node: str, port: int, service: str, method: str) -> float:
    """Returns the number of calls that an instance has answered, by its own metric, with a record or without."""
    return sum(
        metric(node, port, "grpc_server_handling_seconds_count", service=service, method=method, code=code)
        for code in ["OK", "NOT_FOUND"]
    )


def feed_calls(node: str, method: str) -> float:
    """Returns the same for the feed instance of a host."""
    return answered(node, 6062, "feed.Feed", method)


boot(["node-0", "node-1", "node-4"], ["node-2", "node-3", "client"])

with subtest("every role becomes ready, and registers the address at which others reach it"):
    wait_for_app(REGISTERED)

with subtest("the three curls of the original's README print what it shows, byte for byte"):
    wait_for_answers(TOPIC.replace("view?topic_id=1", "list"), timeout=SETTLE)
    three_curls()

with subtest("ps shows the gateway"):
    out = node_4.succeed("ps ax -o args")
    assert any("microservice-app apigateway" in line for line in out.splitlines()), out

with subtest("profile and topic are written and read through the gateway, a profile with its feeds"):
    put("/api/profile/put_profile", {"user_id": 123, "name": "Ada", "company": "AE", "title": "Countess"})
    put("/api/topic/put_topic", {"topic_id": 1, "subject": "engines", "content": "analytical"})
    profile = json.loads(curl(f"'{GATEWAY}{PROFILE}'"))
    assert profile["name"] == "Ada", profile
    assert profile["feeds"] == json.loads(TWO_FEEDS)["feeds"], profile
    topic = json.loads(curl(f"'{GATEWAY}{TOPIC}'"))
    assert topic == {"topic_id": 1, "subject": "engines", "content": "analytical"}, topic

with subtest("the instances of a host share its store"):
    ports = [6064, 6164]
    earlier = [answered("node-3", port, "topic.Topic", "GetTopic") for port in ports]
    for _ in range(4):
        assert json.loads(curl(f"'{GATEWAY}{TOPIC}'")) == topic
    later = [answered("node-3", port, "topic.Topic", "GetTopic") for port in ports]
    assert [after - before for before, after in zip(earlier, later)] == [2, 2], (earlier, later)

with subtest("a user without feeds is 404, an unknown route too, a bad id 400"):
    assert status("/api/feed/get_feeds?user_id=124&size=2") == "404"
    assert status("/api/nothing") == "404"
    assert status("/api/feed/get_feeds?user_id=none&size=2") == "400"

with subtest("ports are open for the listed hosts, and closed for all others"):
    # nftables on node-1, iptables on the others
    for source, target, port, expected in [
        ("node-4", "node-1", 8082, "open"),
        ("node-3", "node-1", 8082, "dropped"),
        ("node-4", "node-1", 6062, "open"),
        ("node-2", "node-1", 6062, "dropped"),
        ("node-4", "node-3", 8084, "open"),
        ("node-2", "node-3", 8084, "dropped"),
        ("node-4", "node-3", 6064, "open"),
        ("node-2", "node-3", 6064, "dropped"),
        ("client", "node-4", 8080, "open"),
        ("client", "node-4", 6060, "dropped"),
        ("client", "node-0", 2379, "dropped"),
        ("node-3", "node-0", 2379, "open"),
        ("node-3", "node-0", 2380, "dropped"),
        ("node-1", "node-0", 5432, "open"),
        ("node-3", "node-0", 5432, "dropped"),
        ("node-1", "node-0", 2381, "dropped"),
        ("node-0", "node-1", 9100, "dropped"),
    ]:
        found = reach(source, target, port)
        assert found == expected, f"{source} to {target}:{port}: {found}, want {expected}"

with subtest("the units are sandboxed: systemd's security score is at most 2.0"):
    check_sandboxes("'microservice-app-*'", "etcd.service", "'postgresql*'", "prometheus-node-exporter.service")

with subtest("a second feed instance started by hand on node-2 gets its share of the writes"):
    start_feed_by_hand()
    writes = 100
    before = {node: feed_calls(node, "CreateFeed") for node in ["node-1", "node-2"]}
    client.succeed(
        f"for id in $(seq 1001 {1000 + writes}); do curl --silent --fail --max-time {CALL} --output /dev/null"
        f" -XPUT {GATEWAY}/api/feed/create_feed -d '{{\"id\":'$id',\"user_id\":7,\"content\":\"x\"}}' || exit 1; done"
    )
    shares = {node: feed_calls(node, "CreateFeed") - count for node, count in before.items()}
    log.info(f"shares of {writes} writes: {shares}")
    assert sum(shares.values()) == writes, shares
    assert all(abs(share - writes / 2) <= 0.05 * writes for share in shares.values()), shares

with subtest("both instances answer reads, with the same records: they share the database"):
    before = {node: feed_calls(node, "GetFeeds") for node in ["node-1", "node-2"]}
    answers = {curl(f"'{GATEWAY}/api/feed/get_feeds?user_id=7&size=100'") for _ in range(8)}
    assert len(answers) == 1, f"{len(answers)} different answers"
    assert len(json.loads(answers.pop())["feeds"]) == writes
    reads = {node: feed_calls(node, "GetFeeds") - count for node, count in before.items()}
    assert all(count >= 2 for count in reads.values()), reads

with subtest("scaling in fails no call"):
    # profile calls feed too: two clients see the instance leave
    put("/api/profile/put_profile", {"user_id": 7, "name": "x", "company": "x", "title": "x"})
    with steady_calls("/api/feed/get_feeds?user_id=7", "/api/profile/get_profile?user_id=7"):
        node_2.succeed(f"systemctl stop {BY_HAND}")
        wait_for_keys("feed", [FEED_1], timeout=SETTLE)

with subtest("a restart of the gateway refuses no connection"):
    # the new process starts with the view that the old one saved
    with steady_calls(FEEDS, TOPIC):
        for _ in range(3):
            node_4.succeed("systemctl restart microservice-app-apigateway.service")

with subtest("etcd is away for a while, and no call fails"):
    with steady_calls(FEEDS, PROFILE, TOPIC):
        node_0.succeed("systemctl stop etcd.service")
        node_0.sleep(OUTAGE)
        node_0.succeed("systemctl start etcd.service")
        node_0.wait_for_unit("etcd.service", timeout=SETTLE)
        for service, addresses in REGISTERED.items():
            wait_for_keys(service, addresses, timeout=SETTLE)

with subtest("after the outage the gateway sees changes again"):
    start_feed_by_hand()

with subtest("a crashed service node costs no call"):
    put("/api/feed/create_feed", {"id": 1, "user_id": 8, "content": "x"})
    with steady_calls("/api/feed/get_feeds?user_id=8&size=1", "/api/topic/list"):
        node_1.crash()
        wait_for_keys("feed", [FEED_2], timeout=TTL + SETTLE)
    put("/api/feed/create_feed", {"id": 1, "user_id": 9, "content": "written while node-1 is away"})
    wait_for_answers("/api/feed/get_feeds?user_id=9&size=1", timeout=SETTLE, count=6)

with subtest("the node comes back by itself, with everything that was acknowledged"):
    node_1.start()
    node_1.wait_for_unit("microservice-app-feed.service", timeout=BOOT)
    wait_for_keys("feed", [FEED_1, FEED_2], timeout=SETTLE)
    node_2.succeed(f"systemctl stop {BY_HAND}")
    wait_for_keys("feed", [FEED_1], timeout=SETTLE)
    wait_for_answers(FEEDS, timeout=SETTLE)
    out = curl(f"'{GATEWAY}{FEEDS}'")
    assert out == TWO_FEEDS, out

with subtest("the database restarts, and nothing that was acknowledged is lost"):
    node_0.succeed("systemctl restart postgresql.service")
    node_0.wait_for_unit("postgresql.target", timeout=SETTLE)
    # a write in the moment of the restart is refused
    record = json.dumps({"id": 2, "user_id": 9, "content": "written after the restart"})
    client.wait_until_succeeds(
        f"curl --silent --fail --max-time {CALL} -XPUT {GATEWAY}/api/feed/create_feed -d '{record}'", timeout=SETTLE
    )
    feeds = json.loads(curl(f"'{GATEWAY}/api/feed/get_feeds?user_id=9'"))["feeds"]
    assert [feed["id"] for feed in feeds] == [1, 2], feeds

with subtest("no unit of ours failed or logged an error"):
    for name, machine in NODES.items():
        failed = machine.succeed("systemctl list-units --failed --plain --no-legend 'microservice-app-*' etcd.service")
        assert failed == "", f"{name}: {failed}"
        # systemd's own messages have a priority, the lines of the program have a level
        logged = machine.succeed(
            "journalctl --quiet --no-pager --output=cat --priority=err -u 'microservice-app-*' -u etcd.service;"
            " journalctl --quiet --no-pager --output=cat -u 'microservice-app-*' | grep -w ERROR || true"
        )
        assert logged == "", f"{name}: {logged}"
