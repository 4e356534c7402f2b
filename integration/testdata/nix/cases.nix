# The configurations that the module is evaluated with, as a user would write them.
let
  docker = { virtualisation.docker.enable = true; };
  examples = ../../../nix/examples;
  # The options of sops-nix and agenix that the examples set, and what those modules derive.
  secrets = { lib, ... }: {
    options = {
      sops = lib.mkOption { type = lib.types.attrsOf lib.types.anything; apply = lib.mapAttrs (n: v: if n == "secrets" then lib.mapAttrs (name: s: s // { path = "/run/secrets/${name}"; }) v else v); };
      age = lib.mkOption { type = lib.types.attrsOf lib.types.anything; apply = lib.mapAttrs (_: lib.mapAttrs (name: s: s // { path = "/run/agenix/${name}"; })); };
    };
  };
in
{
  off = { };
  minimal = { services.hubcache.enable = true; };
  docker = docker // { services.hubcache.enable = true; };
  full = {
    services.hubcache = {
      enable = true;
      listenAddress = "192.168.1.10";
      port = 5005;
      openFirewall = true;
      budget = "200GiB";
      dataDir = "/srv/hubcache";
      credentials = { username = "jane"; passwordFile = "/run/secrets/dockerhub-pat"; };
      dockerPrune = { enable = true; dates = "hourly"; randomizedDelaySec = "5min"; };
      settings = {
        admin.listen = "127.0.0.1:5006";
        tags.max_stale = "336h";
        docker.prune = { min_age = "48h"; keep = [ "docker.io/library/*:*" ]; };
      };
    };
    networking.proxy.envVars = { https_proxy = "http://proxy.lan:3128"; };
    virtualisation.docker = {
      enable = true;
      daemon.settings.registry-mirrors = [ "http://other.lan:5000" ];
    };
  };
  noMirror = docker // { services.hubcache = { enable = true; registryMirror = false; }; };
  everywhere = docker // { services.hubcache = { enable = true; listenAddress = "::"; }; };
  ownListen = docker // { services.hubcache = { enable = true; settings.listen = [ ":5000" "unix:/run/hubcache/pull.sock" ]; }; };
  privilegedPort = docker // { services.hubcache = { enable = true; port = 80; }; };
  credential = { services.hubcache = { enable = true; credentials = { username = "jane"; passwordFile = "/run/secrets/dockerhub-pat"; }; }; };
  registries = docker // {
    services.hubcache = {
      enable = true;
      listenAddress = "192.168.1.10";
      registries = {
        "ghcr.io" = { };
        "quay.io" = { username = "acme+robot"; passwordFile = "/run/secrets/quay"; private = [ "acme/*" ]; };
        "registry.lan:5000" = { url = "http://registry.lan:5000"; username = "jane"; passwordFile = "/run/secrets/lan"; };
      };
    };
  };
  shared = {
    services.hubcache = {
      enable = true;
      listenAddress = "192.168.1.10";
      shared = {
        bucket = { endpoint = "https://s3.lan"; name = "images"; };
        accessKeyFile = "/run/secrets/access";
        secretKeyFile = "/run/secrets/secret";
        lease.redis = "redis.lan:6379";
        redisPasswordFile = "/run/secrets/redis";
        advertise = "http://192.168.1.10:5000";
      };
    };
  };
  prune = docker // { services.hubcache = { enable = true; dockerPrune.enable = true; }; };

  sops = { imports = [ secrets (examples + "/hubcache.nix") (examples + "/sops.nix") ]; };
  agenix = { imports = [ secrets (examples + "/hubcache.nix") (examples + "/agenix.nix") ]; };

  pruneAndAutoPrune = {
    services.hubcache = { enable = true; dockerPrune.enable = true; };
    virtualisation.docker = { enable = true; autoPrune.enable = true; };
  };
  firewallForLoopback = { services.hubcache = { enable = true; openFirewall = true; }; };

  halfCredential = { services.hubcache = { enable = true; credentials.username = "jane"; }; };
  halfRegistry = { services.hubcache = { enable = true; registries."quay.io".username = "jane"; }; };
  sharedKeyInStore = { services.hubcache = { enable = true; shared = { bucket = { endpoint = "https://s3.lan"; name = "images"; }; accessKeyFile = "${builtins.storeDir}/abc-key"; }; }; };
  badRegistry = { services.hubcache = { enable = true; registries."library" = { }; }; };
  namedAddress = { services.hubcache = { enable = true; listenAddress = "localhost"; }; };
  dataInHome = { services.hubcache = { enable = true; dataDir = "/home/jane/cache"; }; };
  portTaken = { services.hubcache.enable = true; services.dockerRegistry.enable = true; };
  pruneWithoutDocker = { services.hubcache = { enable = true; dockerPrune.enable = true; }; };
  unknownSetting = { services.hubcache = { enable = true; settings.tags.max_stail = "1h"; }; };
  badBudget = { services.hubcache = { enable = true; budget = "plenty"; }; };

  # nix_boot_test.go boots this: the client of nix/nixos-test.nix, with Hub on the same host.
  boot = docker // {
    services.hubcache = {
      enable = true;
      budget = "1GiB";
      credentials = { username = "jane"; passwordFile = "/etc/secrets/dockerhub-pat"; };
      # So that any disk counts as full and any image as old. The timer does not start a prune.
      dockerPrune = { enable = true; dates = "2100-01-01"; };
      settings = {
        upstream.url = "http://127.0.0.1:5100";
        docker.prune = { high_watermark = "1%"; low_watermark = "1%"; min_age = "0s"; quiet = "0s"; tagged = true; };
      };
    };
  };

  bootElsewhere = { services.hubcache = { enable = true; dataDir = "/srv/cache/hubcache"; port = 80; }; };

  # These must fail to evaluate.
  credentialInStore = { services.hubcache = { enable = true; credentials = { username = "jane"; passwordFile = "${builtins.storeDir}/abc-pat"; }; }; };
  registryCredentialInStore = { services.hubcache = { enable = true; registries."quay.io" = { username = "jane"; passwordFile = "${builtins.storeDir}/abc-pat"; }; }; };
  portTooHigh = { services.hubcache = { enable = true; port = 70000; }; };
  unknownOption = { services.hubcache = { enable = true; bugdet = "20GiB"; }; };
}
