# The page of all options, and the check that each of them is documented.
{
  self,
  lib,
  pkgs,
}:
let
  root = "${toString ../.}/";
  evaluated = lib.evalModules {
    modules = [
      self.nixosModules.default
      {
        # the options of NixOS itself are not part of this page
        _module.check = false;
        _module.args = { inherit pkgs; };
      }
    ];
  };
  # `_module` aside
  options = { inherit (evaluated.options) services; };

  shown = lib.filter (option: option.visible && !option.internal) (
    lib.optionAttrSetToDocList options
  );
  # what only the user can know
  required = [
    "services.microservice-app.feed.instances.<name>.port"
    "services.microservice-app.profile.instances.<name>.port"
    "services.microservice-app.topic.instances.<name>.port"
  ];
  lacks =
    option:
    lib.optional ((option.description or null) == null) "description"
    ++ lib.optional (!option ? default && !lib.elem option.name required) "default"
    ++ lib.optional (!option ? example) "example"
    ++ lib.optional (option.type == "unspecified value") "type";
  undocumented = lib.concatMap (
    option: map (what: "${option.name} has no ${what}") (lacks option)
  ) shown;

  page =
    (pkgs.nixosOptionsDoc {
      inherit options;
      warningsAreErrors = true;
      transformOptions =
        option:
        option // { declarations = map (file: lib.removePrefix root (toString file)) option.declarations; };
    }).optionsCommonMark;
in
{
  inherit page;
  # fails when evaluated, and so before anything is built
  check =
    if undocumented == [ ] then
      pkgs.runCommand "options-documented" { inherit page; } "ln -s $page $out"
    else
      throw "options without documentation:\n${lib.concatLines undocumented}";
}
