# What differs from one site to another: edit this file first. It is a plain value, so that the hosts and the VM tests
# use the same addresses.
{
  # Your public SSH keys, the only way to log in to the hosts. With the placeholder the hosts evaluate, but they do not
  # build: otherwise you would lock yourself out.
  administratorKeys = [ "ssh-ed25519 REPLACE-ME administrator@example.org" ];

  # The addresses of the hosts. Choose any others; no other file repeats them.
  nodes = {
    node-0 = "192.168.50.10"; # registry
    node-1 = "192.168.50.11"; # feed
    node-2 = "192.168.50.12"; # profile
    node-3 = "192.168.50.13"; # topic
    node-4 = "192.168.50.14"; # apigateway
    # add the addresses of monitor and tracer here
  };
  prefixLength = 24;
  gateway = "192.168.50.1";
  nameservers = [ "192.168.50.1" ];
  # name of the network card; on a host with several of them give the exact name, otherwise each gets this address
  interface = "en*";

  # The hosts that may read the admin ports (metrics): the monitor, once there is one.
  monitors = [ ];
}
