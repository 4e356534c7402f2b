# The token, kept by agenix. `agenix -e secrets/dockerhub-pat.age` edits it: one line, the
# token.
{ config, ... }:
{
  age.secrets.dockerhub-pat.file = ./secrets/dockerhub-pat.age;

  services.hubcache.credentials = {
    username = "jane";
    passwordFile = config.age.secrets.dockerhub-pat.path;
  };

  # systemd reads the token when the service starts, so a new token needs a restart. The path
  # of the token doesn't change with it, but the encrypted file does.
  systemd.services.hubcache.restartTriggers = [ config.age.secrets.dockerhub-pat.file ];
}
