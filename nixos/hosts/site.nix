# What differs from one site to the next: edit this file first. A plain value, so that the VM tests read
# the same addresses as the hosts.
{
  # Your public SSH keys, the only way into the hosts. As long as this is the placeholder, the hosts
  # evaluate but refuse to be built, so that nobody locks himself out.
  administratorKeys = [ "ssh-ed25519 REPLACE-ME administrator@example.org" ];

  # The network of the hosts. Any other plan works; nothing else repeats these addresses.
  nodes = {
    node-0 = "192.168.50.10"; # registry
    node-1 = "192.168.50.11"; # feed
    node-2 = "192.168.50.12"; # profile
    node-3 = "192.168.50.13"; # topic
    node-4 = "192.168.50.14"; # apigateway
    # monitor and tracer: their addresses come here
  };
  prefixLength = 24;
  gateway = "192.168.50.1";
  nameservers = [ "192.168.50.1" ];
  # name of the network card; on a host with several of them name the one, or each gets this address
  interface = "en*";

  # Who may read the admin ports (metrics): the address of the monitor, once there is one.
  monitors = [ ];
}
