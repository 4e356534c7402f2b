# The cache, Docker that pulls through it, and a prune that removes nothing that is in use.
{ config, ... }:
{
  virtualisation.docker.enable = true;

  services.hubcache = {
    enable = true;
    budget = "40GiB";
    dockerPrune.enable = true;
    settings.docker.prune.keep = [ "docker.io/library/*:*" ];
  };

  # Users that may run commands under a hold (`hubcache docker hold`) and use the admin socket.
  users.groups.hubcache.members = [ "ci" ];

  environment.systemPackages = [ config.services.hubcache.package ];
}
