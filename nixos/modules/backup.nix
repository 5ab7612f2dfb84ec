# Regular copies of the SQLite files of this host's services, made while the services run.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.microservice-app;
  inherit (cfg) backup;
  ours = import ./lib.nix { inherit config lib pkgs; };

  urlOf = role: cfg.${role}.settings.store.url;
  # the services that keep their records in a file
  roles = lib.filter (
    role: cfg.${role}.enable && lib.hasPrefix "sqlite:" (urlOf role)
  ) ours.serviceNames;

  copy = pkgs.writeShellApplication {
    name = "microservice-app-backup";
    runtimeInputs = [
      pkgs.coreutils
      pkgs.findutils
      pkgs.sqlite
    ];
    # FILE KEEP: copies FILE into the state directory, and removes all copies but the newest KEEP ones
    text = ''
      file=$1 keep=$2
      dir=$STATE_DIRECTORY/backup name=$(basename "$file" .db)
      [ -f "$file" ] || { echo "$file is not there yet"; exit 0; }
      mkdir -p "$dir"
      new=$dir/$name.new
      rm -f "$new"
      trap 'rm -f "$new"' EXIT
      sqlite3 -bail -cmd '.timeout 30000' "$file" "VACUUM INTO '$new'"
      checked=$(sqlite3 -bail "$new" 'PRAGMA integrity_check')
      [ "$checked" = ok ] || { echo "the copy is damaged: $checked" >&2; exit 1; }
      sync "$new"
      mv "$new" "$dir/$name-$(date -u +%Y-%m-%dT%H-%M-%S.%NZ).db"
      sync "$dir"
      find "$dir" -name "$name-*.db" | sort -r | tail -n +"$((keep + 1))" | while read -r old; do
        rm -- "$old"
      done
    '';
  };

  unitOf = role: {
    "${ours.stateOf role}-backup" = {
      description = "microservice-app: copy of the records of ${role}";
      inherit (backup) startAt;
      serviceConfig = import ./hardening.nix // {
        Type = "oneshot";
        ExecStart = "${lib.getExe copy} ${lib.removePrefix "sqlite:" (urlOf role)} ${toString backup.keep}";
        # the same user as the service: systemd gives both the same number
        DynamicUser = true;
        User = ours.stateOf role;
        StateDirectory = ours.stateOf role;
        StateDirectoryMode = "0700";
        PrivateNetwork = true;
        Nice = 19;
        IOSchedulingClass = "idle";
      };
    };
  };
in
{
  options.services.microservice-app.backup = {
    enable = lib.mkEnableOption "regular copies of the SQLite files of this host's services";
    startAt = mkOption {
      type = types.str;
      default = "daily";
      example = "*-*-* 03:30";
      description = "When to make them, see systemd.time(7). One that was missed is made at the next boot.";
    };
    keep = mkOption {
      type = types.ints.positive;
      default = 7;
      example = 30;
      description = ''
        How many copies to keep of each file. They are in `/var/lib/microservice-app-ROLE/backup`: take them to
        another machine as well.
      '';
    };
  };

  config = lib.mkIf backup.enable {
    assertions = [
      {
        assertion = roles != [ ];
        message = "services.microservice-app.backup.enable is set, but no service of this host keeps its records in a file.";
      }
    ];
    systemd.services = lib.mkMerge (map unitOf roles);
    systemd.timers = lib.genAttrs (map (role: "${ours.stateOf role}-backup") roles) (_: {
      timerConfig = {
        Persistent = true;
        RandomizedDelaySec = "15m";
      };
    });
  };
}
