# The token, kept by sops-nix. `sops secrets/ci.yaml` edits it: dockerhub-pat: dckr_pat_…
{ config, ... }:
{
  sops.defaultSopsFile = ./secrets/ci.yaml;
  sops.age.sshKeyPaths = [ "/etc/ssh/ssh_host_ed25519_key" ];

  # Only root can read it: systemd does so for the service, when the service starts. So a
  # new token has to restart it. No pull fails meanwhile.
  sops.secrets.dockerhub-pat.restartUnits = [ "hubcache.service" ];

  services.hubcache.credentials = {
    username = "jane";
    passwordFile = config.sops.secrets.dockerhub-pat.path;
  };
}
