{
  description = "Pull-through cache for Docker Hub";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      forAllSystems =
        f:
        lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (system: f nixpkgs.legacyPackages.${system});
      revision = self.shortRev or self.dirtyShortRev or "dirty";
      hubcacheOf = pkgs: pkgs.callPackage ./nix/package.nix { version = "0-unstable-${revision}"; };
    in
    {
      packages = forAllSystems (pkgs: rec {
        hubcache = hubcacheOf pkgs;
        default = hubcache;
      });

      overlays.default = final: _prev: { hubcache = hubcacheOf final; };

      # The module as nixpkgs would have it, and where it finds its package.
      nixosModules = rec {
        hubcache =
          { lib, pkgs, ... }:
          {
            imports = [ ./nix/modules/registry-cache.nix ];
            services.hubcache.package =
              lib.mkDefault
                self.packages.${pkgs.stdenv.hostPlatform.system}.hubcache;
          };
        default = hubcache;
      };

      checks = forAllSystems (pkgs: {
        package = hubcacheOf pkgs;
        nixos = pkgs.testers.runNixOSTest (import ./nix/nixos-test.nix { hubcacheModule = self.nixosModules.hubcache; });
      });

      devShells = forAllSystems (pkgs: {
        default = pkgs.mkShell {
          packages = [
            pkgs.go
            pkgs.gopls
            pkgs.gnumake
            pkgs.jq
          ];
        };
      });

      formatter = forAllSystems (pkgs: pkgs.nixfmt-tree);
    };
}
