# A port of which the host says who may reach it: its options, and what they come to.
{ lib, ours }:
let
  opened = place: place.openFirewall || place.openFirewallOn != [ ] || place.allowFrom != [ ];
in
{
  inherit opened;

  optionsOf = what: {
    openFirewall = ours.openFirewallOption what;
    openFirewallOn = ours.openFirewallOnOption what;
    allowFrom = ours.allowFromOption what;
  };

  # The configuration of the firewall for it. `option` is the path of its options, for messages.
  firewallOf = option: place: {
    services.microservice-app.listeners = [
      {
        inherit option;
        inherit (place) port;
        address = if opened place then "::" else "127.0.0.1";
        from = place.allowFrom;
      }
    ];
    networking.firewall = {
      allowedTCPPorts = lib.optional place.openFirewall place.port;
      interfaces = lib.genAttrs place.openFirewallOn (_: {
        allowedTCPPorts = [ place.port ];
      });
    };
  };
}
