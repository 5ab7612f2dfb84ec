//! The pages against the program: what their tables list is what there is, the commands that they show run and print
//! what is shown, and their links and paths lead somewhere.

pub mod blocks;
mod links;
mod session;
mod walks;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use microservice_app::api::error::Code;
use microservice_app::config::{Role, Settings};
use microservice_app::gateway::{KINDS, PAGES, ROUTES};

use crate::kit::app::App;
use crate::kit::http::{get, request, send};
use crate::kit::process::{Process, curl, run};
use crate::kit::skip;
use crate::kit::token::{AUDIENCE, ISSUER, KeyFile, Signer};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The README fits on a few screens, and on the first one stands how to run and try the program.
const README_LINES: usize = 130;
const FIRST_SCREEN: usize = 45;

/// Returns the text of a page. Read when it is wanted: so an edited page rebuilds nothing, and a source tree
/// without it builds.
fn page(name: &str) -> String {
    let path = Path::new(ROOT).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the paths of all files below a directory, those of hidden and built directories aside.
fn files(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_symlink()
            || (path.is_dir() && (name.starts_with('.') || name == "target" || name == "shared"))
        {
            continue;
        }
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// Returns every page, by its path from the root.
fn pages() -> BTreeMap<String, String> {
    let all = files(Path::new(ROOT)).into_iter();
    let pages = all.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let named = pages.map(|path| {
        let name = path.strip_prefix(ROOT).unwrap().display().to_string();
        let text = page(&name);
        (name, text)
    });
    let pages: BTreeMap<_, _> = named.collect();
    assert!(pages.len() >= 10, "only {:?}", pages.keys());
    pages
}

/// Returns true if the whole repository is here. Nix builds the tests from a part of it, which lacks nixos/ and the
/// Makefile: links and paths are then checked elsewhere, by `make test`.
fn whole_repository() -> bool {
    let whole = ["nixos", "Makefile", "LICENSE"].iter().all(|name| Path::new(ROOT).join(name).exists());
    if !whole {
        skip("links and paths of the pages", "this is a part of the repository");
    }
    whole
}

/// Returns the rows of the table of a page whose first column has this title, cell by cell.
fn table(page_name: &str, title: &str) -> Vec<Vec<String>> {
    let (text, head) = (page(page_name), format!("| {title} |"));
    let lines = text.lines().skip_while(|line| !line.starts_with(&head));
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    let rows: Vec<Vec<_>> = rows.map(cells).collect();
    assert!(!rows.is_empty(), "{page_name} has no table that begins with {head}");
    rows
}

/// `tests/perf --accept` writes between the marks, which stand in its code.
#[test]
fn the_performance_page_has_a_place_for_the_table_of_tests_perf() {
    let (text, code) = (page("docs/performance.md"), page("benches/perf/report.rs"));
    let places = ["BEGIN", "END"].map(|name| {
        let mark = code.split_once(&format!("const {name}: &str = \"")).expect("the mark in the code").1;
        let mark = mark.split_once('"').expect("its end").0;
        assert_eq!(text.matches(mark).count(), 1, "{mark}");
        text.find(mark)
    });
    assert!(places[0] < places[1], "the marks are not in order");
}

/// Returns the text between backticks, the whole cell if it has none.
fn code(cell: &str) -> &str {
    cell.strip_prefix('`').and_then(|rest| rest.split_once('`')).map_or(cell, |(code, _)| code)
}

/// Returns the first column of a table as a set; no row may stand there twice.
fn first_column(page_name: &str, title: &str) -> BTreeSet<String> {
    let rows = table(page_name, title);
    let set: BTreeSet<_> = rows.iter().map(|row| code(&row[0]).to_owned()).collect();
    assert_eq!(set.len(), rows.len(), "{page_name}, table {title}: a row stands there twice");
    set
}

/// A running `up` with free ports.
struct Up {
    _process: Process,
    admin: std::net::SocketAddr,
    _data: tempfile::TempDir,
}

impl Up {
    fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let dir = data.path().display().to_string();
        let mut process = Process::start(&["up", "--free-ports", "--data-dir", &dir]);
        let (_, admin) = process.wait_for_role("apigateway");
        Self { _process: process, admin, _data: data }
    }
}

#[test]
fn the_readme_fits_on_a_few_screens() {
    let readme = page("README.md");
    let lines: Vec<_> = readme.lines().collect();
    assert!(lines.len() <= README_LINES, "the README has {} lines", lines.len());
    let first = lines.iter().take(FIRST_SCREEN).copied().collect::<Vec<_>>().join("\n");
    for shown in ["make up", "make test", "apigateway :8080", "create_feed", "get_feeds?user_id=123&&size=2"]
    {
        assert!(first.contains(shown), "{shown} is not within the first {FIRST_SCREEN} lines");
    }
    assert!(!readme.contains("| Key |"), "settings are listed in docs/configuration.md");
}

/// What `up` prints to try is what the README shows.
#[test]
fn the_readme_shows_the_curls_that_up_prints() {
    use std::io::Read as _;
    let addr = "127.0.0.1:8080".parse().unwrap();
    let addresses =
        microservice_app::app::process::Addresses { roles: vec![("apigateway", addr)], admin: addr };
    let mut printed = Vec::new();
    microservice_app::app::up::greet(&addresses, true, "http", &mut printed).unwrap();
    let mut text = String::new();
    printed.as_slice().read_to_string(&mut text).unwrap();
    let pages: Vec<_> = text.lines().filter_map(|line| line.split_once("http://127.0.0.1:8080/")).collect();
    assert!(pages.iter().any(|(_, rest)| rest.starts_with("docs ")), "{text}");
    let printed: Vec<_> = text.lines().map(str::trim).filter(|line| line.starts_with("curl ")).collect();
    let block = blocks::block("README.md", "$ curl -XPUT");
    let shown = block.lines.iter().filter_map(|line| line.strip_prefix("$ "));
    let shown = shown.map(|command| command.replace("localhost", "127.0.0.1"));
    assert_eq!(shown.collect::<Vec<_>>(), printed);
}

/// Returns the method and path of a row of routes.
fn route(row: &[String]) -> (String, String) {
    let (method, path) = row[0].split_once(' ').unwrap();
    (method.to_owned(), path.to_owned())
}

#[tokio::test]
async fn the_api_page_lists_every_route() {
    let app = App::start().await;
    let rows = table("docs/api.md", "Route");
    let documented: Vec<_> = rows.iter().map(|row| (route(row), row[1].as_str())).collect();
    let there =
        ROUTES.iter().map(|route| ((route.method.to_string(), route.path.to_owned()), route.description));
    assert_eq!(documented, there.collect::<Vec<_>>());
    let text = get(app.addresses.admin, "/metrics").await.body;
    let label = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!("{name}=\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let lines = text.lines().filter(|line| line.starts_with("http_server_request_duration_seconds_count{"));
    let counted = lines.filter_map(|line| Some((label(line, "method")?, label(line, "route")?)));
    let counted: BTreeSet<_> = counted.filter(|(_, route)| route.starts_with('/')).collect();
    let files = table("docs/api.md", "File");
    let described: Vec<_> = files.iter().map(|row| (code(&row[0]), row[1].as_str())).collect();
    assert_eq!(described, PAGES.iter().map(|page| (page.path, page.description)).collect::<Vec<_>>());
    let files = files.iter().map(|row| ("GET".to_owned(), code(&row[0]).to_owned()));
    assert_eq!(rows.iter().map(|row| route(row)).chain(files).collect::<BTreeSet<_>>(), counted);
    // what a row says of its request is what the route takes
    for row in &rows {
        let (method, path) = route(row);
        let shown = &row[2];
        let answer = if method == "PUT" {
            send(app.gateway(), request(&method, &path, code(shown))).await.unwrap()
        } else {
            let names = shown.split(", ").map(|name| format!("{}=1", code(name)));
            let path = format!("{path}?{}", names.collect::<Vec<_>>().join("&"));
            send(app.gateway(), request(&method, &path, "")).await.unwrap()
        };
        let found = answer.status == 200 || answer.body.contains("problem:not_found");
        assert!(found, "{method} {path} {shown}: {} {}", answer.status, answer.body);
        if method == "PUT" {
            assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "{}"), "{path}");
        }
        let wrong = send(app.gateway(), request("POST", &path, "")).await.unwrap();
        assert_eq!(wrong.status, 405, "{path}");
        assert!(wrong.header("allow").split(", ").any(|allowed| allowed == method), "{path}");
    }
}

#[tokio::test]
async fn the_api_page_lists_every_error() {
    let app =
        App::start_with(|settings| settings.http.body_timeout = std::time::Duration::from_millis(100)).await;
    let limited = App::start_with(|settings| {
        (settings.http.rate_limit, settings.http.rate_burst) = (1, 1);
    })
    .await;
    let documented: BTreeSet<_> =
        table("docs/api.md", "Status").iter().map(|row| (row[0].clone(), code(&row[1]).to_owned())).collect();
    let mut there: BTreeSet<_> =
        Code::ALL.iter().map(|code| (code.http().as_str().to_owned(), code.name().to_owned())).collect();
    // limits/gateway.rs makes it happen
    there.insert(("503".to_owned(), "overloaded".to_owned()));
    let mut note = |status: u16, body: &str| {
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let kind = body["type"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
        there.insert((status.to_string(), kind));
    };
    let long = format!("/api/topic/list?{}", "x".repeat(9000));
    for (method, path, body) in [
        ("GET", "/nothing", String::new()),
        ("POST", "/api/topic/list", String::new()),
        ("GET", long.as_str(), String::new()),
        ("PUT", "/api/topic/put_topic", "x".repeat(300 * 1024)),
    ] {
        let answer = send(app.gateway(), request(method, path, &body)).await.unwrap();
        note(answer.status.as_u16(), &answer.body);
    }
    for (target, header) in [
        ("/api/topic/put_topic", "content-encoding: gzip"),
        ("/api/topic/put_topic", "expect: x"),
        ("https://x/api/topic/put_topic", "accept: */*"),
    ] {
        let refused = format!(
            "PUT {target} HTTP/1.1\r\nhost: x\r\n{header}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        let answer = crate::kit::http::raw(app.gateway(), refused.as_bytes()).await;
        let (status, _, body) = crate::kit::http::parse(&answer);
        note(status, &body);
    }
    let slow = "PUT /api/topic/put_topic HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{";
    let (status, _, body) =
        crate::kit::http::parse(&crate::kit::http::raw(app.gateway(), slow.as_bytes()).await);
    note(status, &body);
    let key = Signer::es256("a");
    let keys = KeyFile::new(&[&key]);
    let asking = App::start_with(|settings| {
        settings.http.auth_jwks_file = Some(keys.path.clone());
        settings.http.auth_issuer = Some(ISSUER.to_owned());
        settings.http.auth_audience = vec![AUDIENCE.to_owned()];
    })
    .await;
    for token in [String::new(), key.token("124")] {
        let body = r#"{"id":1,"user_id":123,"content":"x"}"#;
        let mut refused = request("PUT", "/api/feed/create_feed", body);
        refused.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let answer = send(asking.gateway(), refused).await.unwrap();
        note(answer.status.as_u16(), &answer.body);
    }
    let mut last = get(limited.gateway(), "/api/topic/list").await;
    for _ in 0..3 {
        last = get(limited.gateway(), "/api/topic/list").await;
    }
    note(last.status.as_u16(), &last.body);
    assert_eq!(documented, there);
    // the description of the API has the same, in the same words
    let rows = table("docs/api.md", "Status");
    let rows: Vec<_> = rows.iter().map(|row| (row[0].as_str(), code(&row[1]), row[2].as_str())).collect();
    let kinds = KINDS.iter().map(|kind| (kind.status.as_str(), kind.name, kind.when));
    assert_eq!(rows, kinds.collect::<Vec<_>>());
}

#[test]
fn the_api_page_lists_every_rpc() {
    let mut there = BTreeSet::new();
    for name in ["feed", "profile", "topic"] {
        let text = page(&format!("proto/{name}.proto"));
        let mut service = "";
        for line in text.lines().map(str::trim) {
            let first =
                |rest: &'static str| line.strip_prefix(rest).and_then(|rest| rest.split([' ', '(']).next());
            if let Some(begun) = first("service ") {
                service = begun;
            }
            if let Some(rpc) = first("rpc ") {
                there.insert(format!("{name}.{service}/{rpc}"));
            }
        }
        assert!(!service.is_empty(), "{name}.proto has no service");
    }
    assert_eq!(first_column("docs/api.md", "Rpc"), there);
    for row in table("docs/api.md", "Rpc") {
        // the policy of each kind is pinned in src/api/rpc.rs
        let (_, method) = code(&row[0]).split_once('/').unwrap();
        let reads = method.starts_with("Get") || method.starts_with("List");
        let (kind, retried) =
            if reads { ("read", "UNAVAILABLE, DEADLINE_EXCEEDED") } else { ("write", "UNAVAILABLE") };
        assert_eq!((row[1].as_str(), row[2].as_str()), (kind, retried), "{method}");
    }
}

#[tokio::test]
async fn the_operations_page_lists_the_admin_port() {
    let app = App::start().await;
    let admin = app.addresses.admin;
    let documented = first_column("docs/operations.md", "Path");
    for path in &documented {
        let seconds = if path.ends_with("/profile") { "?seconds=0" } else { "" };
        let answer = get(admin, &format!("{path}{seconds}")).await;
        assert_ne!(answer.status, 404, "{path}");
    }
    let unknown = get(admin, "/nothing").await;
    assert_eq!(unknown.status, 404);
    let listed = unknown.body.split([' ', ',', '\n']).filter(|word| word.starts_with('/'));
    let listed: BTreeSet<_> = listed.map(str::to_owned).collect();
    assert!(listed.len() >= 7, "{listed:?}");
    let missing: Vec<_> = listed.difference(&documented).collect();
    assert!(missing.is_empty(), "docs/operations.md lacks {missing:?}");
    let status = get(admin, "/status").await.json();
    let members: BTreeSet<_> = status.as_object().unwrap().keys().cloned().collect();
    assert_eq!(first_column("docs/operations.md", "Member"), members);
}

#[test]
fn the_operations_page_lists_every_role_with_its_ports() {
    let roles = [Role::Apigateway, Role::Feed, Role::Profile, Role::Topic, Role::Up];
    let documented: BTreeMap<_, _> = table("docs/operations.md", "Role")
        .into_iter()
        .map(|row| (code(&row[0]).to_owned(), (row[2].clone(), row[3].clone())))
        .collect();
    let there = roles.map(|role| {
        let settings = Settings::for_role(role);
        let (http, grpc) = (settings.http.addr.0.port(), settings.grpc.addr.0.port());
        let first_and_last = (settings.up.feed_addr.0.port(), settings.up.topic_addr.0.port());
        let ports = match role {
            Role::Apigateway => http.to_string(),
            Role::Up => format!("{http}, {} to {}", first_and_last.0, first_and_last.1),
            Role::Feed | Role::Profile | Role::Topic => grpc.to_string(),
        };
        (role.name().to_owned(), (ports, settings.admin.addr.0.port().to_string()))
    });
    assert_eq!(documented, there.into());
}

#[test]
fn the_pages_name_every_flag() {
    let text: String = pages().into_values().collect();
    let named: BTreeSet<_> = text
        .split(|letter: char| !(letter.is_ascii_lowercase() || letter == '-'))
        .filter(|word| word.starts_with("--"))
        .collect();
    let help = |args: &[&str]| run(&[args, &["--help"]].concat()).1;
    let first = help(&[]);
    let commands = first.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let commands =
        commands.take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    let commands: Vec<_> = commands.filter(|command| *command != "help").collect();
    assert!(commands.contains(&"up") && commands.contains(&"check-config"), "{commands:?}");
    let mut flags = BTreeSet::new();
    for command in commands {
        let text = help(&[command]);
        // options are indented less than their descriptions
        let options = text.lines().filter(|line| line.starts_with("  ") && !line.starts_with("       "));
        let lines = options.filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")));
        let shown = lines.map(|flag| flag.trim_end_matches([',', ':']).to_owned());
        flags.extend(shown.filter(|flag| flag != "--help"));
    }
    assert!(flags.contains("--config") && flags.len() > 10, "{flags:?}");
    let missing: Vec<_> = flags.iter().filter(|flag| !named.contains(flag.as_str())).collect();
    assert!(missing.is_empty(), "no page names {missing:?}");
}

/// Returns the name of every metric of the program.
pub fn metrics() -> BTreeSet<String> {
    static NAMES: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        // one word with an underscore: a name; label names have none, and a help text has spaces
        let is_name = |text: &&str| {
            text.find('_').is_some_and(|at| at > 0) // a suffix begins with it
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        // values of labels
        let values = ["in_flight", "write_timeout", "no_certificate"];
        let mut there = BTreeSet::new();
        // the names as the code has them: a family without a child yet is not on the page of metrics
        for path in files(&Path::new(ROOT).join("src")) {
            let name = path.strip_prefix(ROOT).unwrap().display().to_string();
            if name.ends_with("/metrics.rs") || name.contains("/metrics/") {
                let source = page(&name);
                let code_only = source.split("#[cfg(test)]").next().unwrap();
                let literals = code_only.split('"').skip(1).step_by(2);
                there.extend(
                    literals.filter(is_name).filter(|name| !values.contains(name)).map(str::to_owned),
                );
            }
        }
        assert!(there.len() > 20, "{there:?}");
        let up = Up::start();
        let text = curl(&[&format!("http://{}/metrics", up.admin)]);
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let types: Vec<_> = types.map(str::to_owned).collect();
        assert!(types.len() > 20, "{types:?}");
        there.extend(types);
        there
    });
    NAMES.clone()
}

#[test]
fn the_telemetry_page_lists_every_metric() {
    let there = metrics();
    let documented = first_column("docs/telemetry.md", "Metric");
    let covers = |line: &str, name: &str| match line.strip_suffix('*') {
        Some(family) => name.starts_with(family),
        None => name == line,
    };
    let missing: Vec<_> =
        there.iter().filter(|name| !documented.iter().any(|line| covers(line, name))).collect();
    assert!(missing.is_empty(), "docs/telemetry.md lacks {missing:?}");
    let invented: Vec<_> =
        documented.iter().filter(|line| !there.iter().any(|name| covers(line, name))).collect();
    assert!(invented.is_empty(), "docs/telemetry.md has {invented:?}, the program has not");
}
