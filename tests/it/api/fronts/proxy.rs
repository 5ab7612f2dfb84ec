//! Proxies of others in front of the gateway, in the versions of this machine: nginx, HAProxy, Envoy. Each sets `x-request-id`
//! to `front-` and a text that it makes for every request that it counts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::kit::{free_addr, wait_for};

/// A kind of proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Nginx,
    /// It passes on bodies as they come, and headers that it finds odd.
    NginxUnbuffered,
    Haproxy,
    /// It takes more than it should, as for old clients.
    HaproxyLenient,
    Envoy,
}

/// What the callers of a proxy speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callers {
    Http1,
    /// With prior knowledge.
    Http2,
}

/// A running proxy, killed when dropped.
pub struct Proxy {
    pub addr: SocketAddr,
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Kind {
    fn program(self) -> Option<PathBuf> {
        let (name, variable) = match self {
            Self::Nginx | Self::NginxUnbuffered => ("nginx", "NGINX"),
            Self::Haproxy | Self::HaproxyLenient => ("haproxy", "HAPROXY"),
            Self::Envoy => ("envoy", "ENVOY"),
        };
        if let Some(path) = std::env::var_os(variable) {
            return Some(PathBuf::from(path));
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let packaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/web/python/bin");
        let dirs = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), packaged]);
        dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
    }

    /// Starts it in front of `server`, which it calls by HTTP/1.1; its callers speak `callers`. `None` if it is not installed.
    pub async fn start(self, server: SocketAddr, callers: Callers) -> Option<Proxy> {
        let program = self.program()?;
        let (addr, dir) = (free_addr(), tempfile::tempdir().unwrap());
        let file = dir.path().join("front.yaml");
        std::fs::write(&file, self.settings(addr, server, dir.path(), callers)).unwrap();
        let mut command = Command::new(program);
        match self {
            Self::Nginx | Self::NginxUnbuffered => {
                command.arg("-p").arg(dir.path()).arg("-c").arg(&file).args(["-e", "stderr"])
            }
            Self::Haproxy | Self::HaproxyLenient => command.arg("-db").arg("-f").arg(&file),
            Self::Envoy => {
                command.arg("-c").arg(&file).args(["--concurrency", "1", "-l", "error"]);
                // for a restart it takes a name that all Envoys of a machine share
                command.arg("--disable-hot-restart")
            }
        };
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut proxy = Proxy { addr, child: command.spawn().unwrap(), dir };
        wait_for("the proxy listens", || {
            if let Some(status) = proxy.child.try_wait().unwrap() {
                let log = std::fs::read_to_string(proxy.dir.path().join("log")).unwrap_or_default();
                panic!("{self:?} ended with {status}: {log}");
            }
            async move { tokio::net::TcpStream::connect(addr).await.ok() }
        })
        .await;
        Some(proxy)
    }

    fn settings(self, addr: SocketAddr, server: SocketAddr, dir: &Path, callers: Callers) -> String {
        let http2 = callers == Callers::Http2;
        match self {
            Self::Nginx => nginx(addr, server, dir, "", http2),
            Self::NginxUnbuffered => nginx(
                addr,
                server,
                dir,
                "proxy_request_buffering off; underscores_in_headers on; ignore_invalid_headers off;",
                http2,
            ),
            Self::Haproxy => haproxy(addr, server, "", http2),
            Self::HaproxyLenient => haproxy(addr, server, "option accept-invalid-http-request", http2),
            Self::Envoy => envoy(addr, server, http2),
        }
    }
}

fn nginx(addr: SocketAddr, server: SocketAddr, dir: &Path, more: &str, http2: bool) -> String {
    let http2 = if http2 { " http2" } else { "" };
    let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {};", dir.join(name).display()))
        .concat();
    format!(
        "daemon off; master_process off; pid {}; events {{ }}
        http {{
            {temp} access_log off; {more}
            upstream gateway {{ server {server}; keepalive 1; }}
            server {{
                listen {addr}{http2};
                location / {{
                    proxy_pass http://gateway; proxy_http_version 1.1; proxy_set_header Connection \"\";
                    proxy_set_header X-Request-Id front-$request_id;
                }}
            }}
        }}",
        dir.join("pid").display()
    )
}

fn haproxy(addr: SocketAddr, server: SocketAddr, more: &str, http2: bool) -> String {
    let proto = if http2 { " proto h2" } else { "" };
    format!(
        "defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
    http-reuse always
frontend front
    bind {addr}{proto}
    {more}
    http-request set-header x-request-id front-%[uuid]
    default_backend gateway
backend gateway
    server one {server} pool-max-conn 1
"
    )
}

fn envoy(addr: SocketAddr, server: SocketAddr, http2: bool) -> String {
    let codec = if http2 { "HTTP2" } else { "AUTO" };
    let socket = |addr: SocketAddr| {
        format!("{{ socket_address: {{ address: {}, port_value: {} }} }}", addr.ip(), addr.port())
    };
    let types = "type.googleapis.com/envoy.extensions.filters";
    format!(
        "static_resources:
  listeners:
  - address: {}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          '@type': {types}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          codec_type: {codec}
          generate_request_id: false
          delayed_close_timeout: 0.01s
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ '@type': {types}.http.router.v3.Router }}
          route_config:
            request_headers_to_add:
            - header: {{ key: x-request-id, value: 'front-%UNIQUE_ID%' }}
              append_action: OVERWRITE_IF_EXISTS_OR_ADD
            virtual_hosts:
            - name: all
              domains: ['*']
              routes:
              - match: {{ prefix: / }}
                route: {{ cluster: gateway, timeout: 5s }}
  clusters:
  - name: gateway
    type: STATIC
    circuit_breakers: {{ thresholds: [{{ max_connections: 1 }}] }}
    load_assignment:
      cluster_name: gateway
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {} }} }}] }}]
",
        socket(addr),
        socket(server)
    )
}
