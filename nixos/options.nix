# The page with all options, and the check that each option is documented.
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
        # without NixOS' own options, which the modules set
        _module.check = false;
        _module.args = { inherit pkgs; };
      }
    ];
  };
  # without `_module`
  options = { inherit (evaluated.options) services; };

  shown = lib.filter (option: option.visible && !option.internal) (
    lib.optionAttrSetToDocList options
  );
  # options without a default: only the user knows the value
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

  # A declaration that is a text is taken for a path in nixpkgs.
  declarationsOf =
    option: map (file: { name = lib.removePrefix root (toString file); }) option.declarations;
  misplaced = lib.filter (
    option:
    option.declarations == [ ]
    || !lib.all ({ name }: lib.pathExists (../. + "/${name}")) (declarationsOf option)
  ) shown;

  page =
    (pkgs.nixosOptionsDoc {
      inherit options;
      warningsAreErrors = true;
      transformOptions = option: option // { declarations = declarationsOf option; };
    }).optionsCommonMark;
in
{
  inherit page;
  # the first two fail already when it is evaluated
  check =
    if undocumented != [ ] then
      throw "options without documentation:\n${lib.concatLines undocumented}"
    else if misplaced != [ ] then
      throw "options without a file of ours:\n${
        lib.concatMapStrings (option: "${option.name}: ${toString option.declarations}\n") misplaced
      }"
    else
      pkgs.runCommand "options-documented" { inherit page; } ''
        ! grep -q 'nixpkgs/' -r $page || { echo "an option is said to be of nixpkgs"; exit 1; }
        ln -s $page $out
      '';
}
