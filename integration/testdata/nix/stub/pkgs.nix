# A stub of nixpkgs' package set: derivations that have a name and are never built. Tests can
# read the arguments of the functions that make them (`args`).
{
  lib,
  system ? "x86_64-linux",
  # The stub of a derivation. The flake's stub replaces it by real, empty derivations.
  build ? name: {
    type = "derivation";
    inherit name system;
    outPath = "/nix/store/00000000000000000000000000000000-${name}";
  },
}:
let
  fake = name: extra: build name // { meta = { }; } // extra;
  program = name: fake name { meta.mainProgram = name; };

  pkgs = {
    inherit lib system;
    stdenv = {
      buildPlatform.canExecute = _: true;
      hostPlatform = { inherit system; };
    };
    callPackage = file: overrides:
      let f = if builtins.isFunction file then file else import file; in
      f (builtins.intersectAttrs (builtins.functionArgs f) pkgs // overrides);
    buildGoModule = f:
      let args = if builtins.isFunction f then f args else f; in
      fake "${args.pname}-${args.version}" { inherit args; inherit (args) version meta; passthru = args.passthru or { }; };
    runCommand = name: env: script: fake name { inherit env script; };
    writeText = name: text: fake name { inherit text; };
    mkShell = args: fake "shell" { inherit args; };
    testers.runNixOSTest = test: fake "vm-test-run" { inherit test; };
    dockerTools.buildLayeredImage = args: fake "${args.name}.tar.gz" { inherit args; };
    dockerTools.fakeNss = fake "fake-nss" { };
    formats.yaml = _: rec {
      type = with lib.types; nullOr (oneOf [ bool int float str path (attrsOf type) (listOf type) ]) // { description = "YAML value"; };
      generate = name: value: fake name { inherit value; };
    };
    versionCheckHook = fake "version-check-hook" { };
    installShellFiles = fake "install-shell-files" { };
    nix-update-script = _: [ "nix-update" ];
  } // lib.genAttrs [ "coreutils" "go" "gopls" "gnumake" "nixfmt-tree" "cacert" "skopeo" "jq" "curl" ] program;
in
pkgs
