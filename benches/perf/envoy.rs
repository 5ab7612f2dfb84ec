//! Envoy as a gateway from JSON to gRPC before our feed service, with one worker thread, as our gateway has.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::{Process, free_addr, wait_until_it_listens};
use super::stack::{Etcd, Role, fill, prefix};

/// The part of googleapis that the rules below need.
const ANNOTATIONS: &str = r#"
syntax = "proto3";
package google.api;
import "google/protobuf/descriptor.proto";
extend google.protobuf.MethodOptions { HttpRule http = 72295728; }
message HttpRule {
  oneof pattern { string get = 2; string put = 3; }
  string body = 7;
}
"#;

/// Envoy and a feed service.
pub struct Envoy {
    pub proxy: Process,
    pub feed: Process,
    pub addr: SocketAddr,
    _dir: tempfile::TempDir,
}

/// Returns the program: what the variable `ENVOY` names, else `envoy` from the path or of the tests' packages.
pub fn program() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ENVOY") {
        return Some(PathBuf::from(path));
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let packaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/web/python/bin");
    std::env::split_paths(&path).chain([packaged]).map(|dir| dir.join("envoy")).find(|file| file.is_file())
}

impl Envoy {
    pub fn start(program: &Path, ours: &Path, etcd: &Etcd) -> Self {
        let (addr, service, dir) = (free_addr(), free_addr(), tempfile::tempdir().expect("a directory"));
        let prefix = prefix();
        let feed = Role {
            program: ours,
            name: "feed",
            addr: service,
            admin: free_addr(),
            etcd: etcd.addr,
            prefix: &prefix,
            settings: &[],
        };
        let feed = feed.start();
        wait_until_it_listens(service);
        let descriptors = descriptors(dir.path());
        let file = dir.path().join("envoy.yaml");
        std::fs::write(&file, settings(addr, service, &descriptors)).expect("a file");
        let mut command = Command::new(program);
        command.arg("-c").arg(&file).args(["--concurrency", "1", "-l", "error"]);
        command.args(["--use-dynamic-base-id", "--disable-hot-restart"]);
        let proxy = Process::start(&mut command);
        fill(addr);
        Self { proxy, feed, addr, _dir: dir }
    }
}

/// Compiles our messages with the rules of two routes.
fn descriptors(dir: &Path) -> PathBuf {
    let api = dir.join("google/api");
    std::fs::create_dir_all(&api).expect("a directory");
    std::fs::write(api.join("annotations.proto"), ANNOTATIONS).expect("a file");
    let proto = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/feed.proto"));
    let proto = proto
        .expect("feed.proto")
        .replace("package feed;", "package feed;\nimport \"google/api/annotations.proto\";");
    let rule = |proto: String, rpc: &str, rule: &str| {
        let plain = format!("{rpc};");
        assert!(proto.contains(&plain), "no {plain} in feed.proto");
        proto.replace(&plain, &format!("{rpc} {{ option (google.api.http) = {{ {rule} }}; }}"))
    };
    let get = "rpc GetFeeds(GetFeedsRequest) returns (GetFeedsResponse)";
    let proto = rule(proto, get, r#"get: "/api/feed/get_feeds""#);
    let put = "rpc CreateFeed(FeedRecord) returns (OkResponse)";
    let proto = rule(proto, put, r#"put: "/api/feed/create_feed" body: "*""#);
    std::fs::write(dir.join("feed.proto"), proto).expect("a file");
    let out = dir.join("feed.pb");
    let protoc = std::env::var("PROTOC").unwrap_or_else(|_| "protoc".to_owned());
    let output = Command::new(protoc)
        .arg("-I")
        .arg(dir)
        .args(
            std::env::var("PROTOC_INCLUDE").map(|include| vec!["-I".to_owned(), include]).unwrap_or_default(),
        )
        .args(["--include_imports", "--descriptor_set_out"])
        .arg(&out)
        .arg(dir.join("feed.proto"))
        .output()
        .expect("protoc is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out
}

fn settings(addr: SocketAddr, service: SocketAddr, descriptors: &Path) -> String {
    let socket = |addr: SocketAddr| {
        format!("{{ socket_address: {{ address: {}, port_value: {} }} }}", addr.ip(), addr.port())
    };
    let types = "type.googleapis.com/envoy.extensions";
    format!(
        "static_resources:
  listeners:
  - address: {}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          '@type': {types}.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          http_filters:
          - name: envoy.filters.http.grpc_json_transcoder
            typed_config:
              '@type': {types}.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder
              proto_descriptor: {}
              services: [feed.Feed]
              print_options: {{ preserve_proto_field_names: true, always_print_primitive_fields: true }}
          - name: envoy.filters.http.router
            typed_config: {{ '@type': {types}.filters.http.router.v3.Router }}
          route_config:
            virtual_hosts:
            - name: all
              domains: ['*']
              routes:
              - match: {{ prefix: / }}
                route: {{ cluster: feed, timeout: 2s }}
  clusters:
  - name: feed
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': {types}.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    load_assignment:
      cluster_name: feed
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {} }} }}] }}]
",
        socket(addr),
        descriptors.display(),
        socket(service)
    )
}
