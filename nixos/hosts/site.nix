# What differs from one site to another: edit this file first. It is a plain value, so that the hosts and the VM tests
# use the same addresses.
{
  # Your public SSH keys, the only way to log in to the hosts. With the placeholder the hosts evaluate, but they do not
  # build: otherwise you would lock yourself out.
  administratorKeys = [ "ssh-ed25519 REPLACE-ME administrator@example.org" ];

  # The addresses of the hosts. Choose any others; no other file repeats them.
  nodes = {
    node-0 = "192.168.50.10"; # registry and database
    node-1 = "192.168.50.11"; # feed
    node-2 = "192.168.50.12"; # profile
    node-3 = "192.168.50.13"; # topic
    node-4 = "192.168.50.14"; # apigateway
    monitor = "192.168.50.15"; # Prometheus, Alertmanager, Grafana
    tracer = "192.168.50.16"; # Zipkin
  };
  prefixLength = 24;
  gateway = "192.168.50.1";
  nameservers = [ "192.168.50.1" ];
  # name of the network card; on a host with several of them give the exact name, otherwise each gets this address
  interface = "en*";

  # The hosts that may read the admin ports and the exporters (metrics).
  monitors = [ "192.168.50.15" ];

  # Who is told of an alert: a channel of Slack, a web hook, both, or nobody as here. The files are secrets on the monitor.
  slack.urlFile = null; # "/var/lib/secrets/slack-url"
  webhook = {
    url = null; # "https://alerts.example.org/hook"
    tokenFile = null; # "/var/lib/secrets/webhook-token"
  };

  # The shared database on node-0. The file with its password is a secret on node-0, node-1 and node-2.
  database = {
    url = "postgres://app@192.168.50.10/msa";
    passwordFile = "/var/lib/secrets/db-password";
  };
}
