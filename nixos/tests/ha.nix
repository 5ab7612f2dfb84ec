# VM test of high availability: three members of etcd with TLS and users, three of a Patroni cluster with strict synchronous
# mode, and a client with feed and a gateway, whose acknowledged writes must survive the loss of a host. Patroni before 3.0.3 loses some, see docs/storage.md.
{
  self,
  lib,
  pkgs,
}:
let
  ours = import ./lib.nix { inherit self lib pkgs; };
  members = {
    db-0 = "192.168.50.20";
    db-1 = "192.168.50.21";
    db-2 = "192.168.50.22";
  };
  client = "192.168.50.100";
  addresses = lib.attrValues members;

  # An authority, a certificate for all members, and one for their clients. It has no common name: etcd refuses one that has,
  # if there are users, in what comes over HTTP as from Patroni.
  certificates = pkgs.runCommand "certificates" { nativeBuildInputs = [ pkgs.openssl ]; } ''
    mkdir $out
    cd $out
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=authority \
      -keyout ca.key -out ca.crt
    make() {
      openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /O=$1 -keyout $1.key -out $1.csr
      echo "subjectAltName=$2" > $1.ext
      openssl x509 -req -in $1.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -extfile $1.ext -out $1.crt
    }
    make etcd ${lib.concatMapStringsSep "," (address: "IP:${address}") ([ "127.0.0.1" ] ++ addresses)}
    make db ${lib.concatMapStringsSep "," (address: "IP:${address}") addresses}
    make client DNS:client
  '';
  secrets = {
    systemd.tmpfiles.rules = [
      "d /var/lib/secrets 0700 root root"
    ]
    ++ map (name: "C+ /var/lib/secrets/${name} 0400 root root - ${certificates}/${name}") [
      "ca.crt"
      "client.crt"
      "client.key"
      "db.crt"
      "db.key"
      "etcd.crt"
      "etcd.key"
    ]
    ++ map (name: "f+ /var/lib/secrets/${name} 0400 root root - secret-of-${name}") [
      "db-password"
      "db-replication"
      "db-superuser"
      "etcd-patroni"
      "etcd-services"
    ];
    # for etcdctl by hand
    environment.variables = {
      ETCDCTL_ENDPOINTS = lib.concatMapStringsSep "," (address: "https://${address}:2379") addresses;
      ETCDCTL_CACERT = "${certificates}/ca.crt";
      ETCDCTL_CERT = "${certificates}/client.crt";
      ETCDCTL_KEY = "${certificates}/client.key";
      # a password is checked for seconds on a slow machine
      ETCDCTL_COMMAND_TIMEOUT = "${toString ours.timings.settle}s";
      ETCDCTL_DIAL_TIMEOUT = "${toString ours.timings.call}s";
    };
  };
  registry = user: {
    endpoints = map (address: "https://${address}:2379") addresses;
    access = {
      caFile = "/var/lib/secrets/ca.crt";
      certFile = "/var/lib/secrets/client.crt";
      keyFile = "/var/lib/secrets/client.key";
      inherit user;
      passwordFile = "/var/lib/secrets/etcd-${user}";
    };
  };
  member = _: address: {
    imports = [
      self.nixosModules.default
      (ours.machine address)
      secrets
    ];
    services.microservice-app = {
      registry = registry "patroni" // {
        server = {
          enable = true;
          inherit address members;
          allowFrom = addresses ++ [ client ];
          tls = { };
          peerTls = { };
        };
      };
      database = {
        enable = true;
        passwordFile = "/var/lib/secrets/db-password";
        allowFrom = [ client ];
        tls = { };
        cluster = {
          inherit members;
          # slow machines
          settings = {
            bootstrap.dcs = {
              ttl = 60;
              loop_wait = 5;
              retry_timeout = 20;
            };
            postgresql.parameters.wal_receiver_timeout = "30s";
          };
        };
      };
    };
    services.etcd.extraConf = {
      HEARTBEAT_INTERVAL = "1000";
      ELECTION_TIMEOUT = "10000";
      # how long a password is hashed, half a minute there by default
      BCRYPT_COST = "4";
    };
  };
in
ours.test {
  name = "ha";
  nodes = lib.mapAttrs member members // {
    client = {
      imports = [
        self.nixosModules.default
        (ours.machine client)
        ours.slow
        secrets
      ];
      environment.systemPackages = [
        pkgs.etcd
        (pkgs.writeShellScriptBin "write-feeds" (builtins.readFile ./write-feeds.sh))
      ];
      services.microservice-app = {
        registry = registry "services";
        store = {
          url = "postgres://app@${lib.concatStringsSep "," addresses}/msa?target_session_attrs=read-write";
          access = {
            caFile = "/var/lib/secrets/ca.crt";
            passwordFile = "/var/lib/secrets/db-password";
          };
        };
        feed.enable = true;
        apigateway.enable = true;
      };
    };
  };
  script = "MEMBERS = ${builtins.toJSON members}\n" + builtins.readFile ./ha.py;
}
