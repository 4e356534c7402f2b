# The files of packaging/systemd, for distributions other than NixOS, by name.
# `nix/render-units` writes them.
let
  units = import ./units.nix {
    program = "/usr/bin/hubcache";
    kill = "/bin/kill";
    config = "/etc/hubcache/config.yaml";
    pull = [ "127.0.0.1:5000" ];
    admin = [
      "/run/hubcache/admin.sock"
      "127.0.0.1:5001"
    ];
    # Without a path, systemd takes it from /etc/credstore if it is there.
    credentials = [ "dockerhub-pat" ];
  };
  inherit (builtins) attrNames concatStringsSep listToAttrs map;
  files = kind: set: map (name: { name = "${name}.${kind}"; value = import ./render.nix set.${name}; }) (attrNames set);
  tmpfile =
    path:
    concatStringsSep "" (
      map (
        kind: let rule = units.tmpfiles.${path}.${kind}; in "${kind} ${path} ${rule.mode} ${rule.user} ${rule.group} -\n"
      ) (attrNames units.tmpfiles.${path})
    );
in
listToAttrs (
  files "service" units.services
  ++ files "socket" units.sockets
  ++ files "timer" units.timers
  ++ [
    { name = "tmpfiles.conf"; value = concatStringsSep "" (map tmpfile (attrNames units.tmpfiles)); }
    { name = "sysusers.conf"; value = "g ${units.group} -\n"; }
  ]
)
