# The token in agenix. `agenix -e secrets/dockerhub-pat.age`, one line, the token.
{ config, ... }:
{
  age.secrets.dockerhub-pat.file = ./secrets/dockerhub-pat.age;

  services.hubcache.credentials = {
    username = "jane";
    passwordFile = config.age.secrets.dockerhub-pat.path;
  };

  # The path stays the same when the token changes; the encrypted file does not. systemd
  # reads the token when the service starts, so that restarts it.
  systemd.services.hubcache.restartTriggers = [ config.age.secrets.dockerhub-pat.file ];
}
