# A host with Docker and hubcache. sops-nix keeps its Docker Hub token; for agenix, use
# ./agenix.nix in place of ./sops.nix.
{
  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    hubcache.url = "github:hubcache/hubcache";
    hubcache.inputs.nixpkgs.follows = "nixpkgs";
    sops-nix.url = "github:Mic92/sops-nix";
    sops-nix.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    {
      nixpkgs,
      hubcache,
      sops-nix,
      ...
    }:
    {
      nixosConfigurations.ci = nixpkgs.lib.nixosSystem {
        system = "x86_64-linux";
        modules = [
          ./configuration.nix
          hubcache.nixosModules.default
          sops-nix.nixosModules.sops
          ./hubcache.nix
          ./sops.nix
        ];
      };
    };
}
