//! The layers and every kind of error.

use std::time::Duration;

use super::*;

fn with_file(text: &str) -> Result<Settings, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.toml");
    std::fs::write(&path, text).unwrap();
    let source = Source { file: Some(path.clone()), env: Some(Map::new()), ..Source::default() };
    let shown = path.display().to_string();
    load(Role::Feed, &source).map_err(|e| e.to_string().replace(&shown, "app.toml"))
}

#[test]
fn later_layers_win() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.toml");
    std::fs::write(&path, "[client]\ndeadline_ms = 3\nkeepalive_ms = 300\nreconnect_cap_ms = 333\n").unwrap();
    let env = [("MSA__CLIENT__DEADLINE_MS", "4"), ("MSA__CLIENT__KEEPALIVE_MS", "400")];
    let source = Source {
        file: Some(path),
        flags: vec![("client.deadline_ms", "--x", "5".to_owned())],
        env: Some(env.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
    };
    let client = load(Role::Feed, &source).unwrap().client;
    assert_eq!(client.deadline, Duration::from_millis(5));
    assert_eq!(client.keepalive, Duration::from_millis(400));
    assert_eq!(client.reconnect_cap, Duration::from_millis(333));
    assert_eq!(client.connect_timeout, Duration::from_secs(1));
}

/// Settings files that are refused, and what the error says.
const REFUSED: &[(&str, &str)] = &[
    (
        "[client]\ndeadlin_ms = 1",
        "unknown key `client.deadlin_ms` in app.toml; did you mean `client.deadline_ms`?",
    ),
    ("[zzz]\nq = 1", "unknown key `zzz.q` in app.toml; `microservice-app settings` lists all keys"),
    ("client = 3", "unknown key `client` in app.toml; did you mean `client."),
    ("[client]\ndeadline_ms = \"soon\"", "`client.deadline_ms` in app.toml: string \"soon\" is not"),
    ("[client]\ndeadline_ms = 1.5", "`client.deadline_ms` in app.toml: want a whole number"),
    ("[client]\ndeadline_ms = true", "`client.deadline_ms` in app.toml: want a whole number"),
    ("[client]\ndeadline_ms = -1", "`client.deadline_ms` in app.toml: -1 is out of range, want 1 to 600000"),
    ("[client]\ndeadline_ms = []", "`client.deadline_ms` in app.toml: want a whole number"),
    ("[client]\ndeadline_ms = {}", "`client.deadline_ms` in app.toml: want a whole number"),
    ("[client.deadline_ms]", "`client.deadline_ms` in app.toml: want a whole number"),
    ("[log]\nlevel = {}", "`log.level` in app.toml: "),
    ("[client]\nattempts = \"yes\"", "`client.attempts` in app.toml: string \"yes\" is not a whole number"),
    (
        "[client]\nattempts = 5000000000",
        "`client.attempts` in app.toml: 5000000000 is out of range, want 1 to 5",
    ),
    ("[trace]\nsample_ratio = 1.5", "`trace.sample_ratio` in app.toml: 1.5 is out of range, want 0 to 1"),
    ("[trace]\nsample_ratio = true", "`trace.sample_ratio` in app.toml: want a number"),
    ("[client]\ndeadline_ms = 0", "`client.deadline_ms` in app.toml: 0 is out of range, want 1 to 600000"),
    ("[grpc]\ntls = \"on\"", "`grpc.tls` in app.toml: `on` is none of off, permissive, strict"),
    (
        "[grpc]\ntls = \"strict\"",
        "`tls.cert_file` in the defaults: is missing, and `grpc.tls` is strict: name a file with the certificate of this",
    ),
    (
        "[grpc]\ntls = \"permissive\"\n[tls]\ncert_file = \"c\"\nkey_file = \"k\"",
        "`tls.ca_file` in the defaults: is missing, and `grpc.tls` is permissive",
    ),
    ("[tls]\nkey_file = \"\"", "`tls.key_file` in app.toml: is empty"),
    (
        "[grpc]\ntls = \"strict\"\nallow = []\n[tls]\ncert_file = \"c\"\nkey_file = \"k\"\nca_file = \"a\"",
        "`grpc.allow` in app.toml: is empty: nobody could call",
    ),
    ("[grpc]\nallow = [\"gateway\"]", "`grpc.allow` in app.toml: `gateway` is no caller, want apigateway"),
    ("[tls]\ntrust_domain = \"Prod\"", "`tls.trust_domain` in app.toml: `Prod` is no trust domain"),
    (
        "[grpc]\ntls = \"strict\"\n[tls]\ncert_file = \"c\"\nkey_file = \"k\"\nca_file = \"a\"\nnames = [\"feed=dns:a.b\", \"feed=dns:c.d\"]",
        "`tls.names` in app.toml: names feed twice",
    ),
    ("[tls]\nnames = [\"feed\"]", "`tls.names` in app.toml: `feed` names no role"),
    (
        "[client]\nbalancer = \"best\"",
        "`client.balancer` in app.toml: `best` is none of peak_ewma, round_robin",
    ),
    ("[grpc]\naddr = \"here\"", "`grpc.addr` in app.toml: `here` is not an address to listen on"),
    (
        "[grpc]\nadvertise_addr = \"a b:1\"",
        "`grpc.advertise_addr` in app.toml: `a b:1` is not an address to call",
    ),
    ("[store]\nurl = \"mysql:x\"", "`store.url` in app.toml: `mysql:x` is not a store"),
    ("[store]\nurl = \"sqlite:\"", "`store.url` in app.toml: `sqlite:` is not a store"),
    ("[store]\nurl = \"sqlite:  \"", "`store.url` in app.toml: `sqlite:  ` is not a store"),
    ("[store]\nurl = \"sqlite::memory:\"", "`store.url` in app.toml: `sqlite::memory:` is no file"),
    (
        "[store]\nurl = \"sqlite:file:x?mode=memory\"",
        "`store.url` in app.toml: `sqlite:file:x?mode=memory` has a URI",
    ),
    ("[store]\nurl = \"sqlite:FILE:x.db\"", "`store.url` in app.toml: `sqlite:FILE:x.db` has a URI"),
    ("[store]\nurl = \"sqlite:x.db?mode=ro\"", "`store.url` in app.toml: `sqlite:x.db?mode=ro` has a URI"),
    ("[store]\nurl = \"sqlite:x.db#a\"", "`store.url` in app.toml: `sqlite:x.db#a` has a URI"),
    ("[store]\nurl = \"sqlite://x.db\"", "`store.url` in app.toml: `sqlite://x.db` has a URI"),
    (
        "[store]\nurl = \"postgres://app:hunter2@db/msa\"",
        "`store.url` in app.toml: the URL of PostgreSQL holds a password",
    ),
    (
        "[store]\nurl = \"postgres://app@db\"",
        "`store.url` in app.toml: the URL of PostgreSQL names no database",
    ),
    (
        "[store]\nurl = \"postgres://app@db/msa?sslmode=require\"",
        "`store.ca_file` in the defaults: is missing, and `store.url` requires TLS",
    ),
    (
        "[store]\nurl = \"postgres://app@db/msa\"\npassword_file = \"\"",
        "`store.password_file` in app.toml: is empty",
    ),
    (
        "[store]\nurl = \"postgres://app@db/msa\"\nca_file = \"ca\"\nkey_file = \"key\"",
        "`store.cert_file` in the defaults: is missing, and store.key_file is set",
    ),
    (
        "[store]\nurl = \"postgres://app@db/msa\"\ncert_file = \"cert\"\nkey_file = \"key\"",
        "`store.ca_file` in the defaults: is missing, and store.cert_file is set",
    ),
    (
        "[store]\nurl = \"postgres://app@db/msa?sslmode=disable\"\nca_file = \"ca\"",
        "`store.ca_file` in app.toml: is for TLS, but `store.url` has sslmode=disable",
    ),
    (
        "[store]\nurl = \"sqlite:x.db\"\npassword_file = \"p\"",
        "`store.password_file` in app.toml: is for PostgreSQL, but `store.url` is sqlite:x.db",
    ),
    ("[registry]\nprefix = \"services\"", "`registry.prefix` in app.toml: "),
    ("[registry]\nprefix = \"services/\"", "`registry.prefix` in app.toml: "),
    ("[registry]\nprefix = \"/services-\"", "`registry.prefix` in app.toml: "),
    ("[registry]\nprefix = \"my services-\"", "`registry.prefix` in app.toml: "),
    ("[registry]\nprefix = \"-\"", "`registry.prefix` in app.toml: "),
    ("[registry]\nprefix = \"/\"", "`registry.prefix` in app.toml: "),
    ("[registry]\nprefix = \"\"", "`registry.prefix` in app.toml: "),
    (
        "[registry]\nendpoints = [\"nowhere\"]",
        "`registry.endpoints` in app.toml: \"nowhere\" is not an etcd address",
    ),
    (
        "[registry]\nkeepalive_ms = 2000",
        "`registry.keepalive_ms` in app.toml: 2000 is out of range, want 100 to 1500",
    ),
    (
        "[http]\ntrusted_proxies = [\"10.0.0.0/8\", \"proxy\"]",
        "`http.trusted_proxies` in app.toml: `proxy` is not an address or a network",
    ),
    (
        "[http]\ntrusted_proxies = [\"10.1.2.3/8\"]",
        "`http.trusted_proxies` in app.toml: `10.1.2.3/8` has bits behind its prefix: want 10.0.0.0/8",
    ),
    ("[http]\ntrusted_proxies = [\"::/0\"]", "`http.trusted_proxies` in app.toml: `::/0` is every address"),
    ("[http]\ntrusted_proxies = \"10.0.0.1\"", "`http.trusted_proxies` in app.toml: "),
    ("[http]\nrate_limit = -1", "`http.rate_limit` in app.toml: "),
    ("[http]\nmax_in_flight = 0", "`http.max_in_flight` in app.toml: 0 is out of range, want 1 to 1000000"),
    ("[log]\nlevel = \"inof\"", "`log.level` in app.toml: \"inof\" is not a level"),
    ("[log]\nformat = \"xml\"", "`log.format` in app.toml: "),
    ("[trace]\nzipkin_addr = \"z:1\"", "`trace.zipkin_addr` in app.toml: "),
    (
        "[registry]\nendpoints = [\"10.0.0.1:2379\"]\n[grpc]\nadvertise_addr = \"127.0.0.1:0\"",
        "`grpc.advertise_addr` in app.toml: 127.0.0.1:0 cannot be called from another host",
    ),
    ("not toml", "app.toml: "),
];

#[test]
fn an_error_names_key_and_origin() {
    for (text, want) in REFUSED.iter().copied() {
        let error = with_file(text).expect_err(text);
        assert!(error.contains(want), "{text:?} gave {error:?}, want {want:?}");
    }
    let gone = Source { file: Some("/nowhere/app.toml".into()), ..Source::default() };
    let error = load(Role::Feed, &gone).expect_err("missing file").to_string();
    assert!(error.starts_with("/nowhere/app.toml: "), "{error}");
}

#[test]
fn no_error_shows_a_password() {
    for text in [
        "[store]\nurl = \"Postgres://app:hunter2@db/msa\"",
        "[store]\nurl = \"postgres://app:hunter2@db/msa",
        "[store]\nurl = postgres://app:hunter2@db/msa",
        "[registry]\nendpoints = [\"https://root:hunter2@etcd:2379\"]",
        "[registry]\nendpoints = [\"root:hunter2@etcd:2379\"]",
        "[registry]\nendpoints = [\"http://root:hunter2\"]",
        "[registry]\nendpoints = [\"etcd:2379\"]\ntls_server_name = \"root:hunter2@etcd\"",
        "[trace]\nzipkin_addr = \"http://app:hunter2@zipkin:9411\"",
        "[trace]\nzipkin_addr = \"https://app:hunter2@zipkin:9411\"",
        "[grpc]\nadvertise_addr = \"http://app:hunter2@h:1\"",
        "[grpc]\naddr = \"http://app:hunter2@h:1\"",
        "[registry]\nendpoints = \"https://root:hunter2@etcd:2379\"",
        "[client]\nattempts = \"postgres://app:hunter2@h/d\"",
    ] {
        let error = with_file(text).expect_err(text);
        assert!(error.contains("app.toml: ") && !error.contains("hunter2"), "{text:?} gave {error:?}");
    }
    // where the file is no TOML is still told
    let error = with_file("[store]\nurl = postgres://app:hunter2@db/msa").unwrap_err();
    assert!(error.contains("line 2"), "{error}");
}

#[test]
fn the_way_to_etcd_is_whole_or_refused() {
    let https = "endpoints = [\"https://a:1\", \"https://b:2/\"]\n";
    let cases = [
        (
            "endpoints = [\"https://a:1\", \"b:2\"]",
            "`registry.endpoints` in app.toml: has endpoints with https",
        ),
        (
            "endpoints = [\"https://a\"]",
            "`registry.endpoints` in app.toml: \"https://a\" is not an etcd address",
        ),
        (https, "`registry.ca_file` in the defaults: is missing, and etcd is reached by https"),
        (
            "ca_file = \"ca\"",
            "`registry.ca_file` in app.toml: is for TLS, but registry.endpoints has no https://",
        ),
        ("tls_server_name = \"x\"", "`registry.tls_server_name` in app.toml: is for TLS"),
        ("cert_file = \"c\"\nkey_file = \"k\"", "`registry.cert_file` in app.toml: is for TLS"),
        (
            "cert_file = \"c\"",
            "`registry.key_file` in the defaults: is missing, and registry.cert_file is set",
        ),
        (
            "key_file = \"k\"",
            "`registry.cert_file` in the defaults: is missing, and registry.key_file is set",
        ),
        ("user = \"u\"", "`registry.password_file` in the defaults: is missing, and registry.user is set"),
        ("password_file = \"p\"", "`registry.user` in the defaults: is missing, and registry.password_file"),
        ("user = \"\"", "`registry.user` in app.toml: is empty"),
        ("ca_file = \"\"", "`registry.ca_file` in app.toml: is empty"),
        ("tls_server_name = \"a:b\"", "`registry.tls_server_name` in app.toml: \"a:b\" is not a name"),
    ];
    for (text, want) in cases {
        let error = with_file(&format!("[registry]\n{text}")).expect_err(text);
        assert!(error.contains(want), "{text:?} gave {error:?}, want {want:?}");
    }
    // none of the files is there: nothing is opened
    let files = "ca_file = \"ca\"\ncert_file = \"c\"\nkey_file = \"k\"\npassword_file = \"/nowhere/p\"\n";
    let whole = format!("[registry]\n{https}{files}user = \"u\"\ntls_server_name = \"etcd.example\"\n");
    assert!(with_file(&whole).unwrap().registry.is_remote());
}

#[test]
fn the_certificate_of_the_gateway_is_whole_or_refused() {
    let load = |text: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.toml");
        std::fs::write(&path, format!("[http]\n{text}")).unwrap();
        let source = Source { file: Some(path), env: Some(Map::new()), ..Source::default() };
        load(Role::Up, &source).map(|_| ()).map_err(|error| error.to_string())
    };
    let (cert, key, hsts) = ("tls.cert_file = \"c\"\n", "tls.key_file = \"k\"\n", "hsts_s = 60\n");
    load(&format!("{cert}{key}{hsts}")).unwrap();
    for (text, wrong, why) in [
        (cert, "http.tls.key_file", "both or none"),
        (key, "http.tls.cert_file", "both or none"),
        (hsts, "http.hsts_s", "http.tls.cert_file is not"),
        ("tls.cert_file = \"\"\n", "http.tls.cert_file", "is empty"),
        ("tls = \"on\"\n", "http.tls", "unknown key"),
    ] {
        let error = load(text).unwrap_err();
        assert!(error.contains(&format!("`{wrong}`")) && error.contains(why), "{text}: {error}");
    }
}

/// A policy that nobody enforces, and tokens of anybody for anything, are refused.
#[test]
fn the_access_of_callers_is_whole_or_refused() {
    let load = |text: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.toml");
        std::fs::write(&path, text).unwrap();
        let source = Source { file: Some(path), env: Some(Map::new()), ..Source::default() };
        load(Role::Up, &source).map_err(|error| error.to_string())
    };
    let (file, issuer, audience) = ("jwks_file = \"j\"\n", "issuer = \"i\"\n", "audience = [\"a\"]\n");
    let policy = "policy = [\"get_feeds=public\", \"put_topic=scope:t\"]\n";
    let whole = load(&format!("[http.auth]\n{file}{issuer}{audience}{policy}")).unwrap().http;
    assert_eq!((whole.auth_audience.len(), whole.auth_policy.len()), (1, 2));
    for (text, key, why) in [
        (issuer.to_owned(), "issuer", "jwks_file is not"),
        (audience.to_owned(), "audience", "jwks_file is not"),
        (policy.to_owned(), "policy", "jwks_file is not"),
        (format!("jwks_file = \"\"\n{issuer}{audience}"), "jwks_file", "is empty"),
        (format!("{file}{audience}"), "issuer", "is missing"),
        (format!("{file}issuer = \"\"\n{audience}"), "issuer", "is empty"),
        (format!("{file}{issuer}"), "audience", "is missing"),
        (format!("{file}{issuer}audience = []"), "audience", "is missing"),
        (format!("{file}{issuer}audience = [\"a\", \"\"]"), "audience", "empty value"),
        (
            format!("{file}{issuer}{audience}policy = [\"get_feeds=public\", \"get_feeds=token\"]"),
            "policy",
            "two rules for get_feeds",
        ),
        (format!("{file}{issuer}{audience}policy = [\"get_feds=public\"]"), "policy", "the operations are"),
        (format!("{file}{issuer}{audience}leeway_s = 301"), "leeway_s", "want 0 to 300"),
        (format!("{file}{issuer}{audience}jwks = 1"), "jwks", "did you mean `http.auth.jwks_file`"),
    ] {
        let error = load(&format!("[http.auth]\n{text}")).unwrap_err();
        assert!(error.contains(&format!("`http.auth.{key}`")) && error.contains(why), "{text}: {error}");
    }
}

#[test]
fn an_error_names_variable_and_flag() {
    let env = [("MSA__CLIENT__DEADLINE_MS".to_owned(), "x".to_owned())];
    let source = Source { env: Some(env.into()), ..Source::default() };
    let error = load(Role::Feed, &source).expect_err("env").to_string();
    assert!(error.contains("MSA__CLIENT__DEADLINE_MS") && error.contains("client.deadline_ms"), "{error}");
    let source = Source {
        flags: vec![("grpc.addr", "--addr", "x".to_owned())],
        env: Some(Map::new()),
        ..Source::default()
    };
    let error = load(Role::Feed, &source).expect_err("flag").to_string();
    assert!(error.contains("flag --addr") && error.contains("grpc.addr"), "{error}");
}

#[test]
fn endpoints_come_as_a_list_from_every_layer() {
    let env = [("MSA__REGISTRY__ENDPOINTS".to_owned(), "a:1, b:2".to_owned())];
    let mut source = Source { env: Some(env.into()), ..Source::default() };
    assert_eq!(load(Role::Feed, &source).unwrap().registry.endpoints, ["a:1", "b:2"]);
    source.flags = vec![("registry.endpoints", "--etcd-addr", "http://c:3,d:4".to_owned())];
    assert_eq!(load(Role::Up, &source).unwrap().registry.endpoints, ["http://c:3", "d:4"]);
}

#[test]
fn proxies_come_as_a_list_from_every_layer() {
    let env = [("MSA__HTTP__TRUSTED_PROXIES".to_owned(), "10.0.0.7, 10.1.0.0/16,fd00::/8".to_owned())];
    let source = Source { env: Some(env.into()), ..Source::default() };
    let proxies = load(Role::Apigateway, &source).unwrap().http.trusted_proxies;
    let shown: Vec<_> = proxies.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["10.0.0.7", "10.1.0.0/16", "fd00::/8"]);
    let of = |ip: &str| proxies.iter().any(|proxy| proxy.contains(ip.parse().unwrap()));
    assert!(of("10.0.0.7") && of("10.1.255.1") && of("fd12::1") && !of("10.0.0.8") && !of("::1"));
    let settings = with_file("[http]\ntrusted_proxies = [\"::ffff:10.0.0.7\"]").unwrap();
    assert_eq!(settings.http.trusted_proxies[0].to_string(), "10.0.0.7");
}

#[test]
fn every_role_has_valid_defaults() {
    let bare = Source { env: Some(Map::new()), ..Source::default() };
    for role in Role::ALL {
        let settings = load(role, &bare).unwrap();
        assert!(settings::all().all(|setting| setting.print(&settings) == setting.default(role)));
    }
}

#[test]
fn an_empty_list_is_a_value() {
    for (text, env) in [("[registry]\nendpoints = []", None), ("", Some(""))] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.toml");
        std::fs::write(&path, text).unwrap();
        let env = env.map(|value| ("MSA__REGISTRY__ENDPOINTS".to_owned(), value.to_owned()));
        let source = Source { file: Some(path), env: Some(env.into_iter().collect()), ..Source::default() };
        let error = load(Role::Feed, &source).expect_err(text).to_string();
        assert!(error.starts_with("`registry.endpoints` in ") && error.contains("is empty"), "{error}");
    }
}

#[test]
fn texts_from_the_environment_stay_as_they_are() {
    let env = [("MSA__REGISTRY__ZONE".to_owned(), "007".to_owned())];
    let source = Source { env: Some(env.into()), ..Source::default() };
    assert_eq!(load(Role::Feed, &source).unwrap().registry.zone.as_deref(), Some("007"));
}
