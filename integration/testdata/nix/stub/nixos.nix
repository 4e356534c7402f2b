# A stub of NixOS: the options that hubcache's module sets or reads, with the types that they
# have in NixOS, and without any effect.
{ lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  strings = mkOption { type = types.listOf types.str; default = [ ]; };
  string = mkOption { type = types.str; default = ""; };
  flag = default: mkOption { type = types.bool; inherit default; };
  scalar = types.oneOf [ types.bool types.int types.str types.path types.package ];
  section = mkOption { type = types.attrsOf (types.either scalar (types.listOf scalar)); default = { }; };
  triggers = mkOption { type = types.listOf scalar; default = [ ]; };
  unit = {
    description = string;
    documentation = strings;
    enable = flag true;
    after = strings;
    before = strings;
    wants = strings;
    requires = strings;
    wantedBy = strings;
    unitConfig = section;
  };
  units = options: mkOption { type = types.attrsOf (types.submodule { options = unit // options; }); default = { }; };
in
{
  options = {
    assertions = mkOption {
      type = types.listOf (types.submodule { options = { assertion = mkOption { type = types.bool; }; message = mkOption { type = types.str; }; }; });
      default = [ ];
    };
    warnings = strings;
    environment.etc = mkOption {
      type = types.attrsOf (types.submodule {
        options = { source = mkOption { type = types.path; }; text = mkOption { type = types.nullOr types.lines; default = null; }; };
      });
      default = { };
    };
    networking.firewall.allowedTCPPorts = mkOption { type = types.listOf types.port; default = [ ]; };
    networking.proxy.envVars = mkOption { type = types.attrsOf types.str; default = { }; };
    systemd.services = units {
      environment = mkOption { type = types.attrsOf (types.nullOr types.str); default = { }; };
      serviceConfig = section;
      startAt = mkOption { type = types.either types.str (types.listOf types.str); default = [ ]; };
      restartTriggers = triggers;
      reloadTriggers = triggers;
      restartIfChanged = flag true;
      reloadIfChanged = flag false;
      stopIfChanged = flag true;
    };
    systemd.sockets = units { socketConfig = section; listenStreams = strings; };
    systemd.timers = units { timerConfig = section; };
    systemd.tmpfiles.settings = mkOption { type = types.attrsOf (types.attrsOf (types.attrsOf (types.submodule {
      options = { mode = string; user = string; group = string; age = string; argument = string; };
    }))); default = { }; };
    users.users = mkOption { type = types.attrsOf (types.submodule {
      options = { isSystemUser = flag false; group = string; description = string; };
    }); default = { }; };
    users.groups = mkOption { type = types.attrsOf (types.submodule { options.members = strings; }); default = { }; };
    environment.systemPackages = mkOption { type = types.listOf types.package; default = [ ]; };
    services.dockerRegistry.enable = flag false;
    services.dockerRegistry.port = mkOption { type = types.port; default = 5000; };
    virtualisation.docker.enable = flag false;
    virtualisation.docker.autoPrune.enable = flag false;
    virtualisation.docker.daemon.settings = mkOption {
      type = types.submodule { freeformType = (pkgs.formats.yaml { }).type; options = { }; };
      default = { };
    };
  };
}
