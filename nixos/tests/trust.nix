# VM test of trust: certificates between gateway and services, which are replaced under load; callers without one or with
# another's are refused; a role cannot read the key of another one on its host; each role has a user of its own in etcd;
# the admin ports are shut.
{
  self,
  lib,
  pkgs,
}:
let
  ours = import ./lib.nix { inherit self lib pkgs; };
  inherit (ours) outsider site;
  client = "192.168.50.100";
  inherit (site) nodes;
  directory = "/var/lib/microservice-app-tls";

  # An authority, and two certificates for each role. `other` is of another authority.
  certificates = pkgs.runCommand "certificates" { nativeBuildInputs = [ pkgs.openssl ]; } ''
    mkdir -p $out/{first,second,other}
    authority() {
      openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=$1 \
        -keyout $1.key -out $1.crt
    }
    make() { # SET ROLE AUTHORITY
      openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /O=$2 \
        -keyout $out/$1/$2.key -out $2.csr
      printf '%s\n' subjectAltName=URI:spiffe://test.example/$2 basicConstraints=critical,CA:FALSE \
        keyUsage=critical,digitalSignature > $2.ext
      openssl x509 -req -in $2.csr -CA $3.crt -CAkey $3.key -CAcreateserial -days 3650 -extfile $2.ext \
        -out $out/$1/$2.crt
    }
    authority ours
    authority theirs
    for role in apigateway feed profile topic; do
      make first $role ours
      make second $role ours
    done
    make other apigateway theirs
    cp ours.crt $out/ca.crt
  '';

  # The files of some roles; `rotate SET` replaces them as whatever issues certificates would, one after the other.
  holder =
    roles:
    let
      # a new file gets the group of its directory
      install = set: ''
        for role in ${toString roles}; do
          for kind in crt key; do
            install -m 0640 ${certificates}/${set}/$role.$kind ${directory}/$role/.new
            mv ${directory}/$role/.new ${directory}/$role/$role.$kind
          done
        done
      '';
    in
    {
      services.microservice-app.tls = {
        mode = "strict";
        trustDomain = "test.example";
      };
      systemd.services.certificates = {
        wantedBy = [ "multi-user.target" ];
        before = map (role: "microservice-app-${role}.service") roles;
        serviceConfig.Type = "oneshot";
        script = "install -m 0644 ${certificates}/ca.crt ${directory}/ca.crt\n" + install "first";
      };
      environment.systemPackages = [ (pkgs.writeShellScriptBin "rotate" (install "$1")) ];
    };

  role = name: {
    imports = [
      self.nixosModules.default
      (ours.machine nodes.${name})
      ours.slow
    ];
    systemd.tmpfiles.rules = [
      "d /var/lib/secrets 0700 root root"
      "f+ /var/lib/secrets/etcd-password 0400 root root - secret-of-${userOf.${name}}"
    ];
    services.microservice-app.registry = {
      endpoints = [ "${nodes.node-0}:2379" ];
      access = {
        user = userOf.${name};
        passwordFile = "/var/lib/secrets/etcd-password";
      };
    };
  };
  userOf = {
    node-0 = "profile";
    node-1 = "feed";
    node-4 = "apigateway";
  };
in
ours.test {
  name = "trust";
  nodes = {
    # profile calls feed, and is called by the gateway
    node-0 = {
      imports = [
        (role "node-0")
        (holder [ "profile" ])
      ];
      services.microservice-app = {
        registry.server = {
          enable = true;
          address = nodes.node-0;
          allowFrom = [
            nodes.node-1
            nodes.node-4
          ];
        };
        profile = {
          enable = true;
          allowFrom = [ nodes.node-4 ];
        };
      };
      # slow machines; the cost is how long a password is hashed, half a minute there by default
      services.etcd.extraConf = {
        BCRYPT_COST = "4";
        HEARTBEAT_INTERVAL = "1000";
        ELECTION_TIMEOUT = "10000";
      };
    };
    node-1 = {
      imports = [
        (role "node-1")
        (holder [ "feed" ])
      ];
      services.microservice-app.feed = {
        enable = true;
        # the client is let through by the firewall, to try what the service itself refuses
        allowFrom = [
          nodes.node-0
          nodes.node-4
          client
        ];
      };
    };
    node-4 = {
      imports = [
        (role "node-4")
        (holder [
          "apigateway"
          "topic"
        ])
      ];
      systemd.tmpfiles.rules = [
        "f+ /var/lib/secrets/etcd-password-of-topic 0400 root root - secret-of-topic"
      ];
      services.microservice-app = {
        apigateway = {
          enable = true;
          openFirewall = true;
        };
        # two roles on one host
        topic = {
          enable = true;
          settings.registry.user = "topic";
          credentials.etcd-password = "/var/lib/secrets/etcd-password-of-topic";
        };
      };
    };
    client = {
      imports = [ (outsider client) ];
      environment.systemPackages = [ pkgs.openssl ];
    };
  };
  script = ''
    CERTIFICATES = "${certificates}"
    TLS = "${directory}"
  ''
  + builtins.readFile ./trust.py;
}
