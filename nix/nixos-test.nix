# Two machines: one runs a fake Docker Hub, the other Docker that pulls through hubcache.
# Needs KVM and no network: `nix build .#checks.x86_64-linux.nixos -L`.
{ hubcacheModule }:
let
  token = "dckr_pat_of_the_test";
in
{
  name = "hubcache";

  nodes.hub =
    { config, pkgs, ... }:
    let
      fakehubd = config.services.hubcache.package.overrideAttrs {
        pname = "fakehubd";
        subPackages = [ "integration/hubtest/fakehubd" ];
        excludedPackages = [ ];
        postInstall = "";
        doCheck = false;
        doInstallCheck = false;
      };
    in
    {
      # Only for the package; the service is not enabled here.
      imports = [ hubcacheModule ];
      networking.firewall.allowedTCPPorts = [
        5100
        5101
        5102
      ];
      # A file of the image that it serves.
      systemd.tmpfiles.settings.fakehubd."/bin/busybox"."L+".argument =
        "${pkgs.pkgsStatic.busybox}/bin/busybox";
      systemd.services.fakehubd = {
        wantedBy = [ "multi-user.target" ];
        after = [ "network.target" ];
        serviceConfig.ExecStart = builtins.concatStringsSep " " [
          "${fakehubd}/bin/fakehubd"
          "--registry 0.0.0.0:5100 --token 0.0.0.0:5101 --cdn 0.0.0.0:5102"
          "--registry-name hub --token-name hub --cdn-name hub"
          "--username jane --password-file ${pkgs.writeText "pat" token}"
        ];
      };
    };

  nodes.client =
    { config, ... }:
    {
      imports = [ hubcacheModule ];
      virtualisation.docker.enable = true;
      virtualisation.diskSize = 4096;
      environment.systemPackages = [ config.services.hubcache.package ];
      # In place of sops-nix or agenix, which put the token outside the store.
      systemd.tmpfiles.settings.token."/run/dockerhub-pat".f = {
        mode = "0400";
        argument = token;
      };
      users.users.ci = {
        isNormalUser = true;
        extraGroups = [
          "docker"
          "hubcache"
        ];
      };
      services.hubcache = {
        enable = true;
        budget = "1GiB";
        credentials.username = "jane";
        credentials.passwordFile = "/run/dockerhub-pat";
        dockerPrune.enable = true;
        # The disk counts as full and every image as old; the timer doesn't start a prune.
        dockerPrune.dates = "2100-01-01";
        settings = {
          upstream.url = "http://hub:5100";
          docker.prune = {
            high_watermark = "1%";
            low_watermark = "1%";
            min_age = "0s";
            quiet = "0s";
            tagged = true;
          };
        };
      };
    };

  testScript = ''
    start_all()
    hub.wait_for_open_port(5100)
    client.wait_for_unit("docker.service")
    client.wait_for_unit("hubcache.service")

    with subtest("a pull goes through the cache, with the account"):
        client.succeed("docker pull busybox:latest")
        ledger = hub.succeed("curl -fsS localhost:5100/ledger?json")
        assert "jane" in ledger, ledger

    client.succeed("docker pull sample:1 && docker image rm sample:1")

    with subtest("with Hub gone, a removed image comes back from the cache"):
        hub.succeed("systemctl stop fakehubd.service")
        client.succeed("docker image rm busybox:latest")
        client.succeed("docker pull busybox:latest")
        client.succeed("docker run --rm --network none busybox:latest true")

    with subtest("no pull fails while the service restarts"):
        client.succeed("docker image rm busybox:latest")
        client.succeed("systemctl restart hubcache.service & docker pull busybox:latest && wait")

    with subtest("under a hold prune removes nothing, and without one it does"):
        client.succeed("docker pull sample:1 && docker tag busybox:latest sample:old")
        client.succeed("systemd-run --unit=hold --uid=ci hubcache docker hold -- sleep infinity")
        client.wait_until_succeeds("! flock -n /run/hubcache/hold/run true")
        client.succeed("systemctl start hubcache-docker-prune.service")
        client.succeed("docker image inspect sample:1 sample:old")
        client.succeed("systemctl stop hold.service")
        client.execute("systemctl start hubcache-docker-prune.service")
        # The newest image of a repository is kept.
        client.fail("docker image inspect sample:1 sample:old")

    with subtest("the service has no more rights than it needs"):
        client.succeed("test $(stat -c %U /var/lib/private/hubcache) != root")
        client.fail("su ci -c 'ls /var/lib/hubcache/blobs'")
        print(client.succeed("systemd-analyze security --threshold=15 hubcache.service"))
  '';
}
