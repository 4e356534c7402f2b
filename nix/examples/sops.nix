# The token in sops-nix. `sops secrets/ci.yaml`, then: dockerhub-pat: dckr_pat_…
{ config, ... }:
{
  sops.defaultSopsFile = ./secrets/ci.yaml;
  sops.age.sshKeyPaths = [ "/etc/ssh/ssh_host_ed25519_key" ];

  # Root's alone: systemd reads it for the service. It does so when the service starts, so
  # a new token restarts it; no pull fails meanwhile.
  sops.secrets.dockerhub-pat.restartUnits = [ "hubcache.service" ];

  services.hubcache.credentials = {
    username = "jane";
    passwordFile = config.sops.secrets.dockerhub-pat.path;
  };
}
