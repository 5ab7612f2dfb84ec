# The test script of trust.nix; prelude.py comes before it.

FEEDS = "/api/feed/get_feeds?user_id=123&size=2"
PROFILE = "/api/profile/get_profile?user_id=123"
FEED = f"{ADDRESSES['node-1']}:8082"
HOLDERS = {"node-0": "profile", "node-1": "feed", "node-4": "apigateway"}
# topic is on the host of the gateway
ROLES = [*HOLDERS.values(), "topic"]
ROOT = "--user=root:secret-of-root"


def health(scheme: str, credentials: str) -> tuple[int, str]:
    """Asks feed for its health, from the client's host; returns curl's exit code and the status."""
    code, out = client.execute(
        f"printf '\\0\\0\\0\\0\\0' | curl --silent --http2-prior-knowledge --max-time {CALL} --output /dev/null"
        f" --write-out '%{{http_code}}' --header 'content-type: application/grpc' --header 'te: trailers'"
        f" {credentials} --data-binary @- {scheme}://{FEED}/grpc.health.v1.Health/Check"
    )
    return code, out


def certificate_of(set_of: str, role: str) -> str:
    """Returns flags of curl for a certificate. The name of the server is no DNS name; curl does not check it."""
    path = f"{CERTIFICATES}/{set_of}/{role}"
    return f"--insecure --cert {path}.crt --key {path}.key"


def wait_for_serial(set_of: str) -> None:
    """Waits until feed shows its certificate of this set."""
    read = "openssl x509 -noout -serial"
    wanted = client.succeed(f"{read} -in {CERTIFICATES}/{set_of}/feed.crt")
    shown = f"openssl s_client -connect {FEED} < /dev/null 2> /dev/null | {read}"

    def shows(last: bool) -> bool:
        found = client.execute(f"timeout {CALL} bash -c '{shown}'")[1]
        if last:
            log.info(f"feed shows {found}, want {wanted}")
        return found == wanted

    retry(shows, SETTLE)


boot(["node-0"])
node_0.wait_for_unit("etcd.service", timeout=BOOT)

with subtest("etcd has a user for each role, with the least rights"):
    for role in ROLES:
        node_0.succeed(
            f"etcdctl role add {role}",
            f"etcdctl role grant-permission {role} readwrite --prefix=true /services/{role}/",
            f"etcdctl user add {role}:secret-of-{role}",
            f"etcdctl user grant-role {role} {role}",
        )
    for role in ["apigateway", "profile"]:
        node_0.succeed(f"etcdctl role grant-permission {role} read --prefix=true /services/")
    node_0.succeed("etcdctl user add root:secret-of-root", "etcdctl user grant-role root root", "etcdctl auth enable")

boot(["node-1", "node-4", "client"])

with subtest("with certificates, the calls of the original's README work"):
    for name, role in HOLDERS.items():
        NODES[name].wait_for_unit(f"microservice-app-{role}.service", timeout=BOOT)
    CALLER.wait_until_succeeds(
        f"curl --silent --fail --max-time {CALL} -XPUT {GATEWAY}/api/feed/create_feed"
        " -d '{\"id\":1,\"user_id\":5,\"content\":\"x\"}'",
        timeout=BOOT,
    )
    three_curls()
    put("/api/profile/put_profile", {"user_id": 123, "name": "Ada", "company": "AE", "title": "Countess"})
    profile = json.loads(curl(f"'{GATEWAY}{PROFILE}'"))
    assert profile["feeds"] == json.loads(TWO_FEEDS)["feeds"], profile

with subtest("a user of etcd can write its own role's keys, and read no more than it needs"):
    for role in ROLES:
        other = "feed" if role == "topic" else "topic"
        user = f"--user={role}:secret-of-{role}"
        node_0.succeed(f"etcdctl {user} put /services/{role}/10.0.0.1:1 x", f"etcdctl {user} del /services/{role}/10.0.0.1:1")
        node_0.fail(f"etcdctl {user} put /services/{other}/10.0.0.1:1 x", f"etcdctl {user} put /elsewhere x")
        node_0.fail(f"etcdctl {user} user list")
        reads = f"etcdctl {user} get --prefix /services/"
        node_0.fail(reads) if role in ("feed", "topic") else node_0.succeed(reads)
    node_0.fail("etcdctl get --prefix /services/")

with subtest("a role can read its own key, and not that of another role of its host"):
    for role, other in [("topic", "apigateway"), ("apigateway", "topic")]:
        node_4.wait_for_unit(f"microservice-app-{role}.service", timeout=BOOT)
        pid = node_4.succeed(f"systemctl show --property=MainPID --value microservice-app-{role}.service").strip()
        # the ids of the process, without its sandbox: the files themselves say who may read them
        ids = dict(line.split(":", 1) for line in node_4.succeed(f"cat /proc/{pid}/status").splitlines())
        uid, gid = ids["Uid"].split()[0], ids["Gid"].split()[0]
        groups = ",".join(ids["Groups"].split())
        read = f"setpriv --reuid={uid} --regid={gid} --groups={groups} cat {TLS}/%s > /dev/null"
        node_4.succeed(read % f"{role}/{role}.key", read % "ca.crt")
        node_4.fail(read % f"{other}/{other}.key")
        node_4.fail(read % f"{other}/{other}.crt")

with subtest("feed answers whom it knows, and nobody else"):
    for allowed in ["apigateway", "profile"]:
        assert health("https", certificate_of("first", allowed)) == (0, "200")
    for refused, flags in {
        "plaintext": None,
        "no certificate": "--insecure",
        "another role's": certificate_of("first", "topic"),
        "another authority's": certificate_of("other", "apigateway"),
    }.items():
        code, out = health("http", "") if flags is None else health("https", flags)
        assert code != 0 and out == "000", f"{refused}: {code} {out}"

with subtest("the admin ports are shut for other hosts"):
    for name, port in [("node-0", 6063), ("node-1", 6062), ("node-4", 6060)]:
        found = reach("client", name, port)
        assert found == "dropped", f"{name}:{port}: {found}"

with subtest("certificates are replaced under load, and no call fails"):
    wait_for_serial("first")
    with steady_calls(FEEDS, PROFILE):
        for number in range(6):
            new = ["second", "first"][number % 2]
            for name in HOLDERS:
                NODES[name].succeed(f"rotate {new}")
            wait_for_serial(new)
    for name, role in HOLDERS.items():
        NODES[name].fail(f"journalctl --quiet --unit=microservice-app-{role} --grep='panicked' | grep .")

with subtest("the units are sandboxed: systemd's security score is at most 2.0"):
    check_sandboxes("'microservice-app-*'")
