# IP addresses and networks: types of options, and questions about single values. The types are strict because the
# values become firewall rules: NixOS' firewall script ends at the first rule that iptables refuses, and then every port
# is open.
{ lib }:
let
  octet = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
  matches = pattern: text: builtins.match pattern text != null;

  isV4 = matches "${octet}(\\.${octet}){3}";
  # eight groups of hexadecimal digits, of which one run may be left out as `::`
  isV6 =
    text:
    let
      halves = lib.splitString "::" text;
      groups = lib.concatMap (half: lib.optionals (half != "") (lib.splitString ":" half)) halves;
      count = lib.length groups;
    in
    lib.all (matches "[0-9a-fA-F]{1,4}") groups
    && (if lib.length halves == 1 then count == 8 else lib.length halves == 2 && count < 8);
  isNetwork =
    text:
    let
      parts = builtins.match "([^/]*)/([0-9]{1,3})" text;
      address = lib.head parts;
      length = lib.toIntBase10 (lib.last parts);
    in
    parts != null && (isV4 address && length <= 32 || isV6 address && length <= 128);

  type =
    description: fits:
    lib.mkOptionType {
      name = "ip";
      inherit description;
      descriptionClass = "noun";
      check = value: lib.isString value && fits value;
      merge = lib.mergeEqualOption;
    };
in
{
  address = type "IP address, such as 192.168.50.14 or fd00::14" (text: isV4 text || isV6 text);
  source = type "IP address or network, such as 192.168.50.14, 10.1.0.0/16 or fd00::/64" (
    text: isV4 text || isV6 text || isNetwork text
  );

  hostPort =
    address: port: "${if lib.hasInfix ":" address then "[${address}]" else address}:${toString port}";

  # The family of an address or network: `IPv4` or `IPv6`.
  familyOf = text: if lib.hasInfix ":" text then "IPv6" else "IPv4";
  # The families of the connections that a listener at an address takes.
  familiesAt =
    address:
    if address == "::" then
      [
        "IPv4"
        "IPv6"
      ]
    else if lib.hasInfix ":" address then
      [ "IPv6" ]
    else
      [ "IPv4" ];
  # Whether two listeners on one port are in each other's way.
  overlap =
    one: other:
    one == other
    || one == "::"
    || other == "::"
    || one == "0.0.0.0" && !lib.hasInfix ":" other
    || other == "0.0.0.0" && !lib.hasInfix ":" one;
}
