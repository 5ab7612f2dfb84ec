//! What deploy/ ships, without running it: it is well formed, and every way of running the application starts the same
//! program with the same settings.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use microservice_app::config::settings::{self, Settings};
use microservice_app::config::{self, Role, Source};
use serde_json::{Value, json};

use super::manifests::find;
use super::shipped;
use crate::kit::yaml::{documents, file, text};

const SERVICES: [Role; 3] = [Role::Feed, Role::Profile, Role::Topic];
const ROLES: [Role; 4] = [Role::Feed, Role::Profile, Role::Topic, Role::Apigateway];
const HEALTH: [&str; 2] = ["/usr/local/bin/microservice-app", "check-health"];

type Env = BTreeMap<String, String>;

/// Returns a text with each `${NAME:-default}` replaced by its default, as compose does where no variable is set.
fn defaults_of(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (inside, behind) = after.split_once('}').unwrap();
        let (_, default) = inside.split_once(":-").unwrap_or_else(|| panic!("${{{inside}}} has no default"));
        out.extend([before, default]);
        rest = behind;
    }
    out + rest
}

fn compose() -> Value {
    compose_file("compose.yml")
}

fn compose_file(name: &str) -> Value {
    documents(&defaults_of(&text(&format!("deploy/{name}")))).remove(0)
}

/// Returns the arguments and the environment of a role in compose.
fn of_compose(compose: &Value, role: Role) -> (Vec<String>, Env) {
    let service = &compose["services"][role.name()];
    let args = service["command"].as_array().unwrap().iter();
    (args.map(plain).collect(), env_of(&service["environment"]))
}

/// Returns the environment of a service of compose.
fn env_of(environment: &Value) -> Env {
    let set = environment.as_object().unwrap().iter();
    set.map(|(name, value)| (name.clone(), plain(value))).collect()
}

/// Returns a value as the text that the program gets.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Returns every object of the base of the Kubernetes manifests.
fn base() -> Vec<Value> {
    let kustomization = file("deploy/kubernetes/base/kustomization.yaml");
    let files = kustomization["resources"].as_array().unwrap().iter();
    let mut objects: Vec<_> = files
        .flat_map(|name| documents(&text(&format!("deploy/kubernetes/base/{}", name.as_str().unwrap()))))
        .collect();
    // kustomize makes it, and its name: with an option that name would stay, and no pod would see a change
    let generated = kustomization["configMapGenerator"].as_array().unwrap();
    let [settings] = generated.as_slice() else { panic!("{generated:?}") };
    assert_eq!(settings.as_object().unwrap().keys().collect::<Vec<_>>(), ["literals", "name"]);
    assert!(kustomization["generatorOptions"].is_null());
    let literals = settings["literals"].as_array().unwrap().iter();
    let data = literals.map(|literal| literal.as_str().unwrap().split_once('=').unwrap());
    let data = data.map(|(name, value)| (name.to_owned(), Value::from(value)));
    let data: serde_json::Map<_, _> = data.collect();
    objects.push(json!({ "kind": "ConfigMap", "metadata": { "name": settings["name"] }, "data": data }));
    objects
}

/// Returns the arguments and the environment of a role in Kubernetes, but for what only the cluster knows.
fn of_kubernetes(objects: &[Value], role: Role) -> (Vec<String>, Env) {
    let deployment = find(objects, "Deployment", role.name());
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let shared = find(objects, "ConfigMap", "settings")["data"].as_object().unwrap();
    let mut env: Env =
        shared.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect();
    for variable in container["env"].as_array().unwrap() {
        if let Some(value) = variable["value"].as_str() {
            env.insert(variable["name"].as_str().unwrap().to_owned(), value.to_owned());
        }
    }
    let args = container["args"].as_array().unwrap().iter();
    (args.map(|arg| arg.as_str().unwrap().to_owned()).collect(), env)
}

/// Returns the settings of a role that differ from its defaults.
fn changed(role: Role, env: &Env) -> BTreeMap<&'static str, String> {
    let source = Source { env: Some(env.clone().into_iter().collect()), ..Source::default() };
    let set = config::load(role, &source).unwrap_or_else(|error| panic!("{}: {error}", role.name()));
    let defaults = Settings::for_role(role);
    let differs = settings::all().filter(|setting| setting.print(&set) != setting.print(&defaults));
    differs.map(|setting| (setting.key, setting.print(&set))).collect()
}

/// Every way starts the program with the role as its only argument, and sets the same few settings: where the registry is,
/// where the records are, where the last view is kept, and who may read the admin port. Everything else is as the role has
/// it by default, the ports among them.
#[test]
fn every_way_starts_the_same_program_with_the_same_settings() {
    if !shipped() {
        return;
    }
    let (compose, objects) = (compose(), base());
    for role in ROLES {
        let name = role.name();
        let mut common = BTreeMap::from([("admin.addr", "[::]:6060".to_owned())]);
        if role != Role::Apigateway {
            common.insert("store.url", format!("sqlite:/data/{name}.db"));
        }
        if matches!(role, Role::Apigateway | Role::Profile) {
            common.insert("registry.snapshot_file", format!("/data/{name}.view"));
        }
        let and = |more: &[(&'static str, &str)]| {
            let mut all = common.clone();
            all.extend(more.iter().map(|(key, value)| (*key, (*value).to_owned())));
            all
        };

        let (args, env) = of_compose(&compose, role);
        assert_eq!(args, [name]);
        let wanted = and(&[
            ("registry.endpoints", "[\"etcd:2379\"]"),
            ("trace.zipkin_addr", "http://zipkin:9411"),
            ("trace.sample_ratio", "0"),
        ]);
        assert_eq!(changed(role, &env), wanted, "compose: {name}");

        let (args, env) = of_kubernetes(&objects, role);
        assert_eq!(args, [name]);
        let wanted = and(&[
            ("registry.endpoints", "[\"etcd-0.etcd:2379\", \"etcd-1.etcd:2379\", \"etcd-2.etcd:2379\"]"),
            ("log.format", "json"),
        ]);
        assert_eq!(changed(role, &env), wanted, "Kubernetes: {name}");
    }
}

/// NixOS sets those settings too and no others (nixos/tests evaluates them), and has the same ports.
#[test]
fn nixos_sets_the_same_settings() {
    if !shipped() {
        return;
    }
    let lib = text("nixos/modules/lib.nix");
    // what stands under a condition is off by default
    let (always, _) = lib.split_once("(lib.mkIf (cfg.").unwrap();
    let set: BTreeSet<_> = always
        .lines()
        .filter_map(|line| line.trim().split_once(" = derived "))
        .map(|(key, _)| key.replace("${listen}", "listen"))
        .collect();
    let wanted = ["listen.addr", "admin.addr", "registry.endpoints", "registry.snapshot_file"];
    assert_eq!(set, wanted.map(str::to_owned).into());
    assert!(
        text("nixos/modules/unit.nix").contains("} ${role} --config ${"),
        "the role is the first argument"
    );

    let service = text("nixos/modules/service.nix");
    assert!(service.contains("store.url = mkOption"));
    let objects = base();
    let stack = text("deploy/stack");
    for role in ROLES {
        let settings = Settings::for_role(role);
        let (port, nix) = if role == Role::Apigateway {
            (settings.http.addr.0.port(), text("nixos/modules/gateway.nix"))
        } else {
            (settings.grpc.addr.0.port(), service.clone())
        };
        let admin = settings.admin.addr.0.port();
        let words: Vec<_> = nix.split_whitespace().collect();
        let pair = [format!("{port};"), "adminPort".to_owned(), "=".to_owned(), format!("{admin};")];
        assert!(words.windows(4).any(|found| found == pair), "NixOS: {}", role.name());
        for wanted in [port, admin] {
            let listed = |line: &str| {
                let mut words = line.split_whitespace();
                words.next() == Some(role.name()) && words.nth(1) == Some(&wanted.to_string())
            };
            assert!(stack.lines().any(listed), "deploy/stack: {} {wanted}", role.name());
        }
        let ports =
            &find(&objects, "Deployment", role.name())["spec"]["template"]["spec"]["containers"][0]["ports"];
        let ports: Vec<_> =
            ports.as_array().unwrap().iter().map(|port| port["containerPort"].as_u64()).collect();
        assert_eq!(ports, [Some(u64::from(port)), Some(6060)], "Kubernetes: {}", role.name());
    }
}

#[test]
fn the_containerfile_is_of_this_version() {
    if !shipped() {
        return;
    }
    let text = text("deploy/Containerfile");
    let has = |line: &str| assert!(text.lines().any(|found| found == line), "no line {line}");
    has(&format!("ARG VERSION={}", env!("CARGO_PKG_VERSION")));
    let rust = env!("CARGO_PKG_RUST_VERSION");
    has(&format!("ARG BUILD_IMAGE=docker.io/library/rust:{rust}-slim-bookworm"));
    has("USER 65532:65532");
    assert!(text.contains(&format!("CMD [\"{}\", \"{}\"]", HEALTH[0], HEALTH[1])), "the health check");
    // what the build reads is what the context has
    let ignored = crate::kit::yaml::text(".containerignore");
    let context: BTreeSet<_> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let copied =
        text.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--"));
    let copied: BTreeSet<_> = copied
        .flat_map(|line| {
            let mut words: Vec<_> = line.split(' ').collect();
            words.pop();
            words
        })
        .collect();
    assert_eq!(copied, context);
}

#[test]
fn compose_bounds_and_hides_every_part() {
    if !shipped() {
        return;
    }
    let compose = compose();
    let volumes = compose["volumes"].as_object().unwrap();
    let mut profiles = BTreeSet::new();
    for (name, service) in compose["services"].as_object().unwrap() {
        assert!(service["mem_limit"].is_string(), "{name} has no limit of memory");
        assert_eq!(service["restart"], "unless-stopped", "{name}");
        for profile in service["profiles"].as_array().into_iter().flatten() {
            profiles.insert(profile.as_str().unwrap().to_owned());
        }
        for port in service["ports"].as_array().into_iter().flatten() {
            let public = !port.as_str().unwrap().starts_with("127.0.0.1:");
            assert_eq!(public, name == "apigateway", "{name}: {port}");
        }
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let (from, to) = volume.as_str().unwrap().split_once(':').unwrap();
            if from.starts_with('.') {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(from);
                assert!(path.exists() && to.ends_with(":ro"), "{name}: {volume}");
            } else if !from.starts_with('/') {
                assert!(volumes.contains_key(from), "{name}: {volume}");
            }
        }
        if ROLES.iter().any(|role| role.name() == name) {
            assert_eq!(
                (&service["read_only"], &service["cap_drop"][0]),
                (&true.into(), &"ALL".into()),
                "{name}"
            );
            let health = service["healthcheck"]["test"].as_array().unwrap();
            assert_eq!(health[1..], HEALTH, "{name}");
            let grace = Settings::for_role(Role::Feed).shutdown.grace.as_secs();
            let given = service["stop_grace_period"].as_str().unwrap().trim_end_matches('s');
            assert!(given.parse::<u64>().unwrap() > grace, "{name}");
        }
    }
    assert_eq!(profiles, ["monitoring", "tracing"].map(str::to_owned).into());
}

/// Who takes over a container gets the key of its role and no other.
#[test]
fn each_role_is_given_its_own_key() {
    if !shipped() {
        return;
    }
    let compose = compose_file("compose.tls.yml");
    for role in ROLES {
        let name = role.name();
        let service = &compose["services"][name];
        assert_eq!(service["volumes"], json!([format!("./certificates/{name}:/certificates:ro")]));
        let env = env_of(&service["environment"]);
        let wanted = BTreeMap::from([
            ("grpc.tls", "strict".to_owned()),
            ("tls.ca_file", "/certificates/ca.pem".to_owned()),
            ("tls.cert_file", format!("/certificates/{name}.pem")),
            ("tls.key_file", format!("/certificates/{name}.key")),
        ]);
        assert_eq!(changed(role, &env), wanted, "compose: {name}");

        let patch = file(&format!("deploy/kubernetes/components/certificates/{name}.yaml"));
        let volumes = &patch["spec"]["template"]["spec"]["volumes"];
        let secret = json!({ "secretName": format!("{name}-certificate"), "defaultMode": 0o440 });
        assert_eq!(*volumes, json!([{ "name": "certificates", "secret": secret }]), "Kubernetes: {name}");
    }
}

/// Who takes over a container can write the entries of its role in the registry, and no others: etcd asks for a user, over
/// TLS. The rights of the users are tried where the commands of docs/kubernetes.md are run.
#[test]
fn each_role_is_a_user_of_etcd() {
    if !shipped() {
        return;
    }
    let components = "deploy/kubernetes/components";
    let patches = |component: &str| -> Vec<Value> {
        let kustomization = file(&format!("{components}/{component}/kustomization.yaml"));
        let patches = kustomization["patches"].as_array().unwrap().iter();
        let patch = |patch: &Value| match patch["path"].as_str() {
            Some(name) => file(&format!("{components}/{component}/{name}")),
            None => documents(patch["patch"].as_str().unwrap()).remove(0),
        };
        patches.map(patch).collect()
    };
    let variables = |container: &Value| -> Env {
        let set =
            container["env"].as_array().unwrap().iter().filter(|variable| variable["value"].is_string());
        set.map(|variable| (plain(&variable["name"]), plain(&variable["value"]))).collect()
    };
    let access = patches("registry-access");
    let settings = env_of(&find(&access, "ConfigMap", "settings")["data"]);
    for role in ROLES {
        let name = role.name();
        let pod = &find(&access, "Deployment", name)["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        assert_eq!(container["name"], name);
        let mut env = settings.clone();
        env.extend(variables(container));
        let wanted = BTreeMap::from([
            ("registry.ca_file", "/certificates/ca.crt"),
            (
                "registry.endpoints",
                "[\"https://etcd-0.etcd:2379\", \"https://etcd-1.etcd:2379\", \"https://etcd-2.etcd:2379\"]",
            ),
            ("registry.password_file", "/run/registry/password"),
            ("registry.user", name),
        ]);
        assert_eq!(
            changed(role, &env),
            wanted.into_iter().map(|(key, value)| (key, value.to_owned())).collect()
        );
        let mount = json!([{ "name": "registry", "mountPath": "/run/registry", "readOnly": true }]);
        let secret = json!({ "secretName": format!("registry-{name}"), "defaultMode": 0o440 });
        assert_eq!(container["volumeMounts"], mount, "{name}");
        assert_eq!(pod["volumes"], json!([{ "name": "registry", "secret": secret }]), "{name}");
    }

    let pod = |objects: &[Value]| find(objects, "StatefulSet", "etcd")["spec"]["template"]["spec"].clone();
    let args = |container: &Value, env: &Env| -> Vec<String> {
        let args = container["args"].as_array().unwrap().iter().map(plain);
        args.map(|arg| arg.replace("$(CLIENTS)", env.get("CLIENTS").map_or("", String::as_str))).collect()
    };
    let (plaintext, secured) = (pod(&base()), pod(&access));
    let (old, new) = (&plaintext["containers"][0], &secured["containers"][0]);
    let env = variables(new);
    // the list takes the place of that of the base: all of it with TLS, but for the port of the probes, and the files
    let with_tls = |arg: String| match arg.split_once('=') {
        Some(("--listen-metrics-urls", _)) => arg,
        _ => arg.replace("http://", "https://"),
    };
    let mut wanted: Vec<_> = args(old, &variables(old)).into_iter().map(with_tls).collect();
    wanted.extend(
        [
            "--cert-file=/certificates/tls.crt",
            "--key-file=/certificates/tls.key",
            "--peer-cert-file=/certificates/tls.crt",
            "--peer-key-file=/certificates/tls.key",
            "--peer-trusted-ca-file=/certificates/ca.crt",
            "--peer-client-cert-auth",
            "--peer-cert-allowed-hostname=etcd",
        ]
        .map(str::to_owned),
    );
    assert_eq!(args(new, &env), wanted);
    assert_eq!(env["MEMBERS"], variables(old)["MEMBERS"].replace("http://", "https://"));
    assert_eq!(new["volumeMounts"][0]["mountPath"], "/certificates");
    let certificate = file(&format!("{components}/registry-access/certificate.yaml"));
    let issued = &certificate["spec"];
    assert_eq!(secured["volumes"][0]["secret"]["secretName"], issued["secretName"]);
    // every name at which somebody asks
    let urls = [&settings["MSA__REGISTRY__ENDPOINTS"], &env["MEMBERS"], &env["ETCDCTL_ENDPOINTS"]];
    let hosts = urls.into_iter().flat_map(|urls| urls.split(','));
    let hosts = hosts.map(|url| url.split_once("https://").unwrap().1.rsplit_once(':').unwrap().0);
    let hosts: BTreeSet<_> = hosts.chain(["etcd"]).collect();
    let names: BTreeSet<_> =
        issued["dnsNames"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(names, hosts);
    assert_eq!(issued["usages"], json!(["digital signature", "server auth", "client auth"]));
    // a certificate of the same authority that has no such name is no member's
    let roles = documents(&text(&format!("{components}/certificates/certificates.yaml")));
    for certificate in roles.iter().filter(|object| object["kind"] == "Certificate") {
        assert!(certificate["spec"]["dnsNames"].is_null(), "{certificate}");
    }
    assert_eq!(issued["issuerRef"], find(&roles, "Certificate", "feed")["spec"]["issuerRef"]);
    let trust = file("deploy/kubernetes/overlays/trust/kustomization.yaml");
    let used = ["certificates", "registry-access", "token"].map(|name| format!("../../components/{name}"));
    assert_eq!(trust["components"], json!(used));

    // the step before it takes both
    let both = patches("permissive");
    assert_eq!(find(&both, "ConfigMap", "settings")["data"], json!({ "MSA__GRPC__TLS": "permissive" }));
    let clients = variables(&pod(&both)["containers"][0]);
    let wanted = [env["CLIENTS"].clone(), env["CLIENTS"].replace("https://", "http://")].join(",");
    assert_eq!(clients, Env::from([("CLIENTS".to_owned(), wanted)]));
}

/// The admin ports listen beyond loopback in containers. A token can be added, and nothing else is changed then.
#[test]
fn a_token_can_be_added_to_the_admin_ports() {
    if !shipped() {
        return;
    }
    let compose = compose_file("compose.token.yml");
    let component = file("deploy/kubernetes/components/token/kustomization.yaml");
    let patch = |index: usize| documents(component["patches"][index]["patch"].as_str().unwrap()).remove(0);
    let (settings, pods) = (patch(0), patch(1));
    let wanted = BTreeMap::from([("admin.token_file", "/admin-token/token".to_owned())]);
    for role in ROLES {
        let name = role.name();
        let service = &compose["services"][name];
        assert_eq!(service["volumes"], json!(["./admin-token:/admin-token:ro"]), "{name}");
        assert_eq!(changed(role, &env_of(&service["environment"])), wanted, "compose: {name}");
        assert_eq!(changed(role, &env_of(&settings["data"])), wanted, "Kubernetes: {name}");
    }
    assert_eq!(pods[0]["value"]["mountPath"], "/admin-token");
    assert_eq!(pods[0]["value"]["name"], pods[1]["value"]["name"]);
    assert_eq!(pods[1]["value"]["secret"], json!({ "secretName": "admin-token", "defaultMode": 0o440 }));
    let target = component["patches"][1]["target"]["name"].as_str().unwrap();
    assert_eq!(target.split('|').collect::<Vec<_>>(), ROLES.map(Role::name));
    let trust = file("deploy/kubernetes/overlays/trust/kustomization.yaml");
    assert!(trust["components"].as_array().unwrap().contains(&"../../components/token".into()));
    // a service that is taken over reaches its own records only, and nobody on the way reads them
    assert_eq!(trust["patches"].as_array().unwrap().len(), SERVICES.len());
    for (role, patch) in SERVICES.into_iter().zip(trust["patches"].as_array().unwrap()) {
        let name = role.name();
        let patch = &documents(patch["patch"].as_str().unwrap())[0];
        assert_eq!(patch["metadata"]["name"], name);
        let pod = &patch["spec"]["template"]["spec"];
        assert_eq!(
            (&pod["containers"][0]["name"], &pod["volumes"][0]["name"]),
            (&json!(name), &json!("store"))
        );
        let env = pod["containers"][0]["env"].as_array().unwrap().iter();
        let env = env.map(|env| (plain(&env["name"]), plain(&env["value"]))).collect();
        let url = format!("postgres://{name}@postgres.example.org/msa?sslmode=verify-full");
        let wanted = BTreeMap::from([("store.url", url), ("store.ca_file", "/run/store/ca.crt".to_owned())]);
        assert_eq!(changed(role, &env), wanted, "{name}");
        assert_eq!(pod["volumes"][0]["secret"]["secretName"], format!("store-{name}"));
    }
}

/// The rules, the dashboards and the configuration of Prometheus are those of deploy/monitoring.
#[test]
fn monitoring_is_the_same_everywhere() {
    if !shipped() {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = Command::new("bash").arg(root.join("deploy/render")).arg("--check").output().unwrap();
    let stale = String::from_utf8_lossy(&fresh.stdout);
    assert!(fresh.status.success(), "stale; rewrite with `make generate`: {stale}");
    for path in ["deploy/compose/prometheus.yml", "deploy/kubernetes/monitoring/prometheus.yml"] {
        let checked = Command::new("promtool")
            .args(["check", "config", "--syntax-only"])
            .arg(root.join(path))
            .output()
            .unwrap();
        assert!(checked.status.success(), "{path}: {}", String::from_utf8_lossy(&checked.stderr));
    }
    let compose = compose();
    let volumes = |service: &str| compose["services"][service]["volumes"].to_string();
    assert!(volumes("prometheus").contains("./monitoring/rules:/etc/prometheus/rules:ro"));
    assert!(volumes("grafana").contains("./monitoring/dashboards:/etc/grafana/dashboards:ro"));
    // Kubernetes: ConfigMaps of the same files, all of them
    let generated = file("deploy/monitoring/kustomization.yaml");
    let mut listed = BTreeSet::new();
    for map in generated["configMapGenerator"].as_array().unwrap() {
        listed.extend(map["files"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()));
    }
    let mut there = BTreeSet::from(["rules/alerts.yml", "rules/recording.yml"].map(str::to_owned));
    for entry in std::fs::read_dir(root.join("deploy/monitoring/dashboards")).unwrap() {
        there.insert(format!("dashboards/{}", entry.unwrap().file_name().to_string_lossy()));
    }
    assert_eq!(listed, there);
}

/// What each pod of the base has: probes on the admin port, time to drain, bounds, and no rights.
#[test]
fn pods_are_probed_bounded_and_without_rights() {
    if !shipped() {
        return;
    }
    let objects = base();
    let grace = Settings::for_role(Role::Feed).shutdown.grace.as_secs();
    for role in ROLES {
        let name = role.name();
        let deployment = find(&objects, "Deployment", name);
        let pod = &deployment["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        for (probe, path) in
            [("startupProbe", "/livez"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")]
        {
            let asked = &container[probe]["httpGet"];
            assert_eq!((&asked["path"], &asked["port"]), (&path.into(), &"admin".into()), "{name}: {probe}");
        }
        let sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64();
        assert_eq!(sleep, (role == Role::Apigateway).then_some(5), "{name}");
        let time = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(time > sleep.unwrap_or(0) + grace, "{name}: {time} s");
        assert_eq!(pod["topologySpreadConstraints"].as_array().map(Vec::len), Some(2), "{name}");
        assert_bounded(name, pod);
    }
    let etcd = &find(&objects, "StatefulSet", "etcd")["spec"];
    assert_bounded("etcd", &etcd["template"]["spec"]);
    // two of three are a majority; and nothing but a person removes a member
    assert_eq!(etcd["replicas"], 3);
    assert_eq!(find(&objects, "PodDisruptionBudget", "etcd")["spec"]["maxUnavailable"], 1);
    assert!(etcd["template"]["spec"]["containers"][0]["lifecycle"].is_null());
}

fn assert_bounded(name: &str, pod: &Value) {
    let container = &pod["containers"][0];
    assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
    assert!(container["resources"]["requests"]["cpu"].is_string(), "{name}");
    for (path, wanted) in [
        ("/securityContext/allowPrivilegeEscalation", Value::from(false)),
        ("/securityContext/readOnlyRootFilesystem", true.into()),
        ("/securityContext/capabilities/drop/0", "ALL".into()),
    ] {
        assert_eq!(container.pointer(path), Some(&wanted), "{name}: {path}");
    }
    for (path, wanted) in [
        ("/securityContext/runAsNonRoot", Value::from(true)),
        ("/securityContext/seccompProfile/type", "RuntimeDefault".into()),
        ("/automountServiceAccountToken", false.into()),
        ("/enableServiceLinks", false.into()),
    ] {
        assert_eq!(pod.pointer(path), Some(&wanted), "{name}: {path}");
    }
}

/// A caller that the network policies leave out would fail in a cluster only.
#[test]
fn the_network_policies_let_the_callers_in() {
    if !shipped() {
        return;
    }
    let objects = base();
    let labels =
        |kind: &str, name: &str| find(&objects, kind, name)["spec"]["template"]["metadata"]["labels"].clone();
    let fits = |selector: &Value, labels: &Value| {
        selector["matchLabels"].as_object().into_iter().flatten().all(|(key, value)| labels[key] == *value)
    };
    let allowed = |from: &Value, to: &Value, port: &Value| {
        objects
            .iter()
            .filter(|object| object["kind"] == "NetworkPolicy" && fits(&object["spec"]["podSelector"], to))
            .any(|policy| {
                policy["spec"]["ingress"].as_array().into_iter().flatten().any(|rule| {
                    let open = rule["from"].is_null();
                    let mut sources = rule["from"].as_array().into_iter().flatten();
                    let mut ports = rule["ports"].as_array().into_iter().flatten();
                    (open || sources.any(|source| fits(&source["podSelector"], from)))
                        && ports.any(|found| found["port"] == *port)
                })
            })
    };
    let etcd = labels("StatefulSet", "etcd");
    let gateway = labels("Deployment", "apigateway");
    let profile = labels("Deployment", "profile");
    let outsider = serde_json::json!({ "app.kubernetes.io/name": "outsider" });
    for role in ROLES {
        let own = labels("Deployment", role.name());
        assert!(allowed(&own, &etcd, &2379.into()), "{}", role.name());
        assert!(!allowed(&own, &etcd, &2380.into()), "{}", role.name());
        assert!(!allowed(&outsider, &own, &"admin".into()), "{}", role.name());
    }
    assert!(allowed(&etcd, &etcd, &2380.into()) && !allowed(&outsider, &etcd, &2379.into()));
    for role in SERVICES {
        let own = labels("Deployment", role.name());
        assert!(allowed(&gateway, &own, &"grpc".into()) && allowed(&profile, &own, &"grpc".into()));
        assert!(!allowed(&outsider, &own, &"grpc".into()), "{}", role.name());
    }
    assert!(allowed(&outsider, &gateway, &"http".into()));
}
