# The test script of upgrade.nix; prelude.py comes before it.
FEEDS = "/api/feed/get_feeds?user_id=123&size=2"
UNIT = "microservice-app-apigateway"
REGISTERED = {"feed": [f"{ADDRESSES['node-1']}:8082"]}


def process() -> str:
    """Returns the gateway's process, and the program that it runs."""
    pid = node_4.get_unit_info(f"{UNIT}.service")["MainPID"]
    return node_4.succeed(f"echo {pid} $(readlink /proc/{pid}/exe)").strip()


def socket_since() -> str:
    return node_4.get_unit_info(f"{UNIT}.socket")["ActiveEnterTimestampMonotonic"]


def switch(to: str) -> str:
    """Activates a generation, and returns what it did, or with `dry-activate` what it would do."""
    return node_4.succeed(f"{to} 2>&1", timeout=BOOT)


boot(["node-0", "node-1", "node-4"], ["client"])
original = node_4.succeed("readlink -f /run/current-system").strip()

with subtest("every role becomes ready"):
    wait_for_app(REGISTERED)
    CALLER.wait_until_succeeds(
        f"curl --silent --fail --max-time {CALL} -XPUT {GATEWAY}/api/feed/create_feed"
        " -d '{\"id\":100,\"user_id\":123,\"content\":\"hello world\"}'",
        timeout=SETTLE,
    )
    wait_for_answers(FEEDS, timeout=SETTLE)
    opened = socket_since()

for name in ["setting", "package"]:
    generation = f"{original}/specialisation/{name}"

    with subtest(f"a changed {name}: the plan is to restart the gateway, and to leave its socket alone"):
        plan = switch(f"{generation}/bin/switch-to-configuration dry-activate")
        assert f"would restart the following units: {UNIT}.service" in plan, plan
        assert f"{UNIT}.socket" not in plan, plan
        assert "would stop" not in plan, plan

    with subtest(f"a changed {name}: the switch and the rollback fail no call"):
        before = process()
        with steady_calls(FEEDS):
            switch(f"{generation}/bin/switch-to-configuration test")
            during = process()
            switch(f"{original}/bin/switch-to-configuration test")
            after = process()
        assert len({before, during, after}) == 3, (before, during, after)
        if name == "package":
            assert "-next" in during and "-next" not in after, (during, after)
        assert socket_since() == opened, "the socket was closed"

with subtest("a generation that changes nothing restarts nothing"):
    before = process()
    switch(f"{original}/bin/switch-to-configuration test")
    assert process() == before

with subtest("a crash of the gateway refuses no connection"):
    client.succeed("rm -f /tmp/calls /tmp/enough")
    client.succeed(f"systemd-run --quiet --collect --unit=steady-calls steady-calls '{GATEWAY}{FEEDS}'")
    for _ in range(3):
        client.sleep(5)
        node_4.succeed(f"systemctl kill --signal=KILL {UNIT}.service")
        node_4.wait_for_unit(f"{UNIT}.service", timeout=SETTLE)
    client.wait_until_succeeds("[ $(wc -l < /tmp/calls) -ge 30 ]", timeout=SETTLE)
    client.succeed("touch /tmp/enough")
    client.wait_until_fails("systemctl is-active --quiet steady-calls", timeout=SETTLE)
    answers = [line.split() for line in client.succeed("cat /tmp/calls").splitlines()]
    # 52 and 56: the connection ended before the answer, with the process; 7 would be a refused one
    lost = [answer for answer in answers if answer[:2] != ["200", "0"]]
    assert len(lost) <= 3 and all(answer[1] in ("52", "56") for answer in lost), lost

with subtest("the host of the gateway is lost, and comes back by itself with its view of the registry"):
    node_4.crash()
    node_4.start()
    node_4.wait_for_unit(f"{UNIT}.service", timeout=BOOT)
    wait_for_answers(FEEDS, timeout=SETTLE, count=5)
