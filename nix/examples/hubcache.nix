# The cache, Docker behind it, and a prune that removes nothing that is in use.
{ config, ... }:
{
  virtualisation.docker.enable = true;

  services.hubcache = {
    enable = true;
    budget = "40GiB";
    dockerPrune.enable = true;
    settings.docker.prune.keep = [ "docker.io/library/*:*" ];
  };

  # Who may purge and pin, and hold off a prune.
  users.groups.hubcache.members = [ "ci" ];

  environment.systemPackages = [ config.services.hubcache.package ];
}
