# Evaluates hubcache's module for the configurations in cases.nix and renders the units.
# nixpkgs is the `lib` directory of a nixpkgs checkout; null is the stub beside this file.
{ nixpkgs ? null }:
let
  lib = if nixpkgs == null then import ./stub/lib.nix else import nixpkgs;
  root = ../../..;
  render = import (root + "/nix/render.nix");
  pkgs = import ./stub/pkgs.nix { inherit lib; } // {
    hubcache = { type = "derivation"; name = "hubcache"; outPath = "/hubcache"; meta.mainProgram = "hubcache"; };
    coreutils = { type = "derivation"; name = "coreutils"; outPath = "/usr"; meta = { }; };
  };
  inherit (builtins) attrNames concatMap filter listToAttrs map mapAttrs;

  evaluate = module:
    let
      config = (lib.evalModules {
        modules = [ ./stub/nixos.nix (root + "/nix/modules/registry-cache.nix") module ];
        specialArgs = { inherit pkgs; };
      }).config;
      # NixOS writes these into the unit, so that a change of a value restarts or reloads it.
      triggers = u: lib.optionalAttrs (u ? restartTriggers) {
        X-Reload-Triggers = map toString u.reloadTriggers;
        X-Restart-Triggers = map toString u.restartTriggers;
        X-StopIfChanged = u.stopIfChanged;
        X-RestartIfChanged = u.restartIfChanged;
      };
      text = u: render (u // { unitConfig = u.unitConfig // triggers u; });
      files = kind: set: map (n: { name = "${n}.${kind}"; value = text set.${n}; }) (attrNames set);
    in
    {
      inherit (config) warnings;
      refusals = map (a: a.message) (filter (a: !a.assertion) config.assertions);
      units = listToAttrs (files "service" config.systemd.services ++ files "socket" config.systemd.sockets ++ files "timer" config.systemd.timers);
      settings = lib.filterAttrsRecursive (_: v: v != null) config.services.hubcache.settings;
      check = if config.environment.etc ? "hubcache/config.yaml" then config.environment.etc."hubcache/config.yaml".source.script else "";
      hosts = if config.environment.etc ? "docker/certs.d/docker.io/hosts.toml" then config.environment.etc."docker/certs.d/docker.io/hosts.toml".text else "";
      certs = listToAttrs (map (n: { name = n; value = config.environment.etc.${n}.text; }) (filter (n: builtins.match "docker/certs.d/.*" n != null) (attrNames config.environment.etc)));
      tmpfiles = config.systemd.tmpfiles.settings;
      ports = config.networking.firewall.allowedTCPPorts;
      users = attrNames config.users.users;
      groups = attrNames config.users.groups;
      docker = config.virtualisation.docker.daemon.settings;
    };
in
mapAttrs (_: evaluate) (import ./cases.nix)
