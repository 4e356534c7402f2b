# The text of a systemd unit whose attributes are named as in NixOS.
unit:
let
  inherit (builtins) attrNames concatMap concatStringsSep filter isBool isList toString;
  words = name: if unit.${name} or [ ] == [ ] then { } else { ${label.${name}} = concatStringsSep " " unit.${name}; };
  label = {
    documentation = "Documentation";
    after = "After";
    before = "Before";
    wants = "Wants";
    requires = "Requires";
    wantedBy = "WantedBy";
  };
  value = v: if isBool v then (if v then "true" else "false") else toString v;
  # An entry that is a list is written as several lines.
  lines = set: concatMap (name: map (v: "${name}=${value v}") (if isList set.${name} then set.${name} else [ set.${name} ])) (attrNames set);
  section = name: set: if set == { } then [ ] else [ (concatStringsSep "\n" ([ "[${name}]" ] ++ lines set)) ];
  environment = unit.environment or { };
  streams = unit.listenStreams or [ ];
in
concatStringsSep "\n\n" (
  section "Unit" (
    { Description = unit.description; }
    // words "documentation"
    // words "after"
    // words "before"
    // words "wants"
    // words "requires"
    // (unit.unitConfig or { })
  )
  ++ section "Service" (
    (unit.serviceConfig or { })
    // (if environment == { } then { } else { Environment = map (name: "\"${name}=${environment.${name}}\"") (filter (name: environment.${name} != null) (attrNames environment)); })
  )
  ++ section "Socket" ((if streams == [ ] then { } else { ListenStream = streams; }) // (unit.socketConfig or { }))
  ++ section "Timer" (unit.timerConfig or { })
  ++ section "Install" (words "wantedBy")
)
+ "\n"
