# A host with two roles. https://example.org/microservice-app has the other ones in docs/nix.md; `nix build
# microservice-app#options` builds a page of all options.
{
  networking.hostName = "web";
  system.stateVersion = "26.05";

  # without a key nobody can log in
  services.openssh.enable = true;
  users.users.root.openssh.authorizedKeys.keys = [ "ssh-ed25519 REPLACE-ME you@example.org" ];

  services.microservice-app = {
    registry.server = {
      enable = true;
      # the address at which the hosts of the services reach this one, and their network
      address = "192.0.2.10";
      allowFrom = [ "192.0.2.0/24" ];
    };
    apigateway = {
      enable = true;
      openFirewall = true;
    };
  };
}
