{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.hubcache;
  docker = config.virtualisation.docker;
  format = pkgs.formats.yaml { };

  defaultDataDir = "/var/lib/hubcache";
  configPath = "/etc/hubcache/config.yaml";
  adminSocket = "/run/hubcache/admin.sock";

  # The name of the credential in $CREDENTIALS_DIRECTORY.
  credential = "dockerhub-pat";

  # The same for a further registry. A name with a port has a colon, which LoadCredential= can't have.
  credentialOf = registry: "registry-${builtins.replaceStrings [ ":" ] [ "_" ] registry}";
  withAccount = builtins.filter (name: cfg.registries.${name}.passwordFile != null) (builtins.attrNames cfg.registries);

  # The secrets of the shared tier: option, setting, and the name of the credential.
  sharedSecrets = builtins.filter (s: cfg.shared.${s.option} != null) [
    {
      option = "accessKeyFile";
      section = "bucket";
      key = "access_key_file";
      credential = "shared-access-key";
    }
    {
      option = "secretKeyFile";
      section = "bucket";
      key = "secret_key_file";
      credential = "shared-secret-key";
    }
    {
      option = "redisPasswordFile";
      section = "lease";
      key = "password_file";
      credential = "shared-redis-password";
    }
  ];

  # The hosts.toml by which Docker asks the cache for a registry. An older Docker would ignore a file
  # with a capability that it doesn't know.
  referrers = builtins.compareVersions (docker.package.version or "0") "29.1" >= 0;
  hostsFile = server: ''
    server = "${server}"

    [host."${mirror}"]
      capabilities = ["pull", "resolve"${if referrers then ", \"referrers\"" else ""}]
      dial_timeout = "2s"
  '';

  hostPort =
    address: port:
    if lib.hasInfix ":" address then
      "[${address}]:${toString port}"
    else
      "${address}:${toString port}";
  isAny = address: address == "0.0.0.0" || address == "::";
  isLoopback = address: address == "::1" || lib.hasPrefix "127." address;

  # The URL by which Docker on this host reaches the cache.
  mirrorHost = if isAny cfg.listenAddress then "127.0.0.1" else cfg.listenAddress;
  mirrorScheme = if settings ? tls then "https" else "http";
  mirror = "${mirrorScheme}://${hostPort mirrorHost cfg.port}";

  # A socket unit wants a bare port for every address, where a setting has ":5000".
  stream = address: lib.removePrefix ":" (lib.removePrefix "unix:" address);

  # The admin socket is always there, and the settings say so: it is where commands that change the
  # cache are answered, and where they look for it.
  withAdminSocket =
    settings:
    if settings ? admin.listen then
      settings
      // {
        admin = settings.admin // {
          listen = lib.unique ([ "unix:${adminSocket}" ] ++ lib.toList settings.admin.listen);
        };
      }
    else
      settings;

  settings = lib.filterAttrsRecursive (_: v: v != null) cfg.settings;
  unchecked = format.generate "hubcache-config.yaml" settings;
  # A wrong setting stops the build, and not the service when it restarts.
  configFile = pkgs.runCommand "hubcache.yaml" { } ''
    ${lib.getExe cfg.package} config check --config ${unchecked}
    cp ${unchecked} $out
  '';

  # The settings that a reload does not put into effect. The program's table of settings
  # has them; a test of it writes this file.
  restartSettings = builtins.fromJSON (builtins.readFile ../restart-settings.json);
  settingAt =
    key:
    builtins.foldl' (section: name: section.${name} or null) settings (
      builtins.filter builtins.isString (builtins.split "[.]" key)
    );
  atStart = builtins.toJSON (
    lib.filterAttrsRecursive (_: v: v != null) (lib.genAttrs restartSettings settingAt)
  );

  units = import ../units.nix {
    program = lib.getExe cfg.package;
    kill = lib.getExe' pkgs.coreutils "kill";
    config = configPath;
    pull = map stream (lib.toList cfg.settings.listen);
    admin = map stream cfg.settings.admin.listen;
    # With toString, because an interpolated path would be copied into the store.
    credentials =
      lib.optional (cfg.credentials.passwordFile != null) "${credential}:${toString cfg.credentials.passwordFile}"
      ++ map (name: "${credentialOf name}:${toString cfg.registries.${name}.passwordFile}") withAccount
      ++ map (s: "${s.credential}:${toString cfg.shared.${s.option}}") sharedSecrets;
    inherit (cfg) dataDir;
    inherit (cfg.dockerPrune) dates randomizedDelaySec;
  };
in
{
  options.services.hubcache = {
    enable = lib.mkEnableOption "hubcache, a pull-through cache for Docker Hub";

    package = lib.mkPackageOption pkgs "hubcache" { };

    listenAddress = lib.mkOption {
      type = lib.types.str;
      default = "127.0.0.1";
      example = "192.168.1.10";
      description = ''
        Numeric address on which images are served. There is no login: everybody who can
        connect may read what hubcache serves, which is what Docker Hub shows to anonymous
        clients.
      '';
    };

    port = lib.mkOption {
      type = lib.types.port;
      default = 5000;
      description = "Port on which images are served. systemd opens it, so a port below 1024 needs no privilege.";
    };

    openFirewall = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = "Whether to open {option}`services.hubcache.port` in the firewall.";
    };

    budget = lib.mkOption {
      type = lib.types.str;
      default = "20GiB";
      example = "30%";
      description = ''
        How much disk space the cache may use, as a size or as a share of the file system.
        The cache never uses more, not even for a moment.
      '';
    };

    dataDir = lib.mkOption {
      type = lib.types.path;
      default = defaultDataDir;
      example = "/srv/hubcache";
      description = ''
        The directory of the cache. It isn't part of the system closure, and it needs no
        backup. With another value than the default, the service runs as the static user
        `hubcache`, so that the files of a large cache never need a new owner.
      '';
    };

    credentials.username = lib.mkOption {
      type = lib.types.nullOr lib.types.nonEmptyStr;
      default = null;
      example = "jane";
      description = "Docker Hub account to pull with. Without one, pulls are anonymous, and Docker Hub limits them by address.";
    };

    credentials.passwordFile = lib.mkOption {
      type = lib.types.nullOr lib.types.externalPath;
      default = null;
      example = lib.literalExpression "config.sops.secrets.dockerhub-pat.path";
      description = ''
        File with the access token of that account (read-only is enough) and nothing else.
        systemd reads it as root when the service starts, so restart the service when its
        content changes. It must not be in the Nix store, which everybody on the host can
        read.
      '';
    };

    registries = lib.mkOption {
      type = lib.types.attrsOf (
        lib.types.submodule {
          freeformType = format.type;
          options = {
            username = lib.mkOption {
              type = lib.types.nullOr lib.types.nonEmptyStr;
              default = null;
              example = "example+robot";
              description = "Account to pull with. Without one, pulls are anonymous.";
            };
            passwordFile = lib.mkOption {
              type = lib.types.nullOr lib.types.externalPath;
              default = null;
              example = lib.literalExpression "config.sops.secrets.quay-token.path";
              description = "File with the token of that account, as for {option}`services.hubcache.credentials.passwordFile`.";
            };
          };
        }
      );
      default = { };
      example = lib.literalExpression ''
        {
          "ghcr.io" = { };
          "quay.io" = {
            username = "example+robot";
            passwordFile = config.sops.secrets.quay-token.path;
            private = [ "example/*" ];
          };
        }
      '';
      description = ''
        Registries that are cached beside Docker Hub, by their names in references. Beside
        the options here each takes the settings of `registries` in {file}`config.yaml`:
        `url`, `ca_file`, `private`, `allow`, `deny`, `tags` and `quota`.
      '';
    };

    shared = lib.mkOption {
      type = lib.types.submodule {
        freeformType = format.type;
        options =
          builtins.mapAttrs
            (
              _: what:
              lib.mkOption {
                type = lib.types.nullOr lib.types.externalPath;
                default = null;
                example = "/run/secrets/hubcache";
                description = "File with ${what}, as for {option}`services.hubcache.credentials.passwordFile`.";
              }
            )
            {
              accessKeyFile = "the access key of the bucket";
              secretKeyFile = "the secret key of the bucket";
              redisPasswordFile = "the password of Redis";
            };
      };
      default = { };
      example = lib.literalExpression ''
        {
          bucket = {
            endpoint = "https://s3.example.com";
            name = "images";
          };
          accessKeyFile = config.sops.secrets.bucket-access-key.path;
          secretKeyFile = config.sops.secrets.bucket-secret-key.path;
          lease.redis = "redis.example.com:6379";
          redisPasswordFile = config.sops.secrets.redis-password.path;
          advertise = "http://10.0.0.1:5000";
        }
      '';
      description = ''
        What several nodes share: a bucket with what any of them has fetched, and a Redis.
        Beside the options here it takes the settings of `shared` in {file}`config.yaml`.
      '';
    };

    registryMirror = lib.mkOption {
      type = lib.types.bool;
      default = true;
      example = false;
      description = ''
        Whether Docker on this host pulls through the cache, if
        {option}`virtualisation.docker.enable` is set. A change restarts Docker.
      '';
    };

    dockerPrune = {
      enable = lib.mkEnableOption ''
        the removal of Docker images that nothing has used for long, when the disk is
        nearly full and no hold is in force (see {manpage}`hubcache(1)`, `docker prune`).
        Thresholds and images to keep are in {option}`services.hubcache.settings`,
        `docker.prune`'';

      dates = lib.mkOption {
        type = lib.types.str;
        default = "*:0/15";
        example = "hourly";
        description = "When to look at the disk, see {manpage}`systemd.time(7)`.";
      };

      randomizedDelaySec = lib.mkOption {
        type = lib.types.str;
        default = "2min";
        description = "How much later than {option}`services.hubcache.dockerPrune.dates` it may start, at random.";
      };
    };

    settings = lib.mkOption {
      apply = withAdminSocket;
      type = lib.types.submodule {
        freeformType = format.type;
        options = { };
      };
      default = { };
      example = lib.literalExpression ''
        {
          tags.max_stale = "336h";
          docker.prune.keep = [ "docker.io/library/*:*" ];
        }
      '';
      description = ''
        All other settings of {file}`config.yaml`; `hubcache config show` lists them. They
        are checked when the system is built. No secret belongs here.
      '';
    };
  };

  config = lib.mkIf cfg.enable (
    lib.mkMerge [
      {
        services.hubcache.settings = {
          listen = lib.mkDefault [ (hostPort cfg.listenAddress cfg.port) ];
          admin.listen = lib.mkDefault "127.0.0.1:5001";
          data_dir = cfg.dataDir;
          budget = lib.mkDefault cfg.budget;
          upstream = lib.mkIf (cfg.credentials.passwordFile != null) {
            username = cfg.credentials.username;
            password_file = credential;
          };
          docker.admin = lib.mkDefault "unix:${adminSocket}";
          registries = lib.mkIf (cfg.registries != { }) (
            builtins.mapAttrs (
              name: r:
              removeAttrs r [ "passwordFile" ]
              // (if r.passwordFile == null then { } else { password_file = credentialOf name; })
            ) cfg.registries
          );
          shared = lib.mkIf (cfg.shared.bucket or null != null || cfg.shared.lease or null != null) (
            builtins.foldl' (
              all: s:
              all
              // {
                ${s.section} = (all.${s.section} or { }) // {
                  ${s.key} = "/run/credentials/hubcache.service/${s.credential}";
                };
              }
            ) (removeAttrs cfg.shared [ "accessKeyFile" "secretKeyFile" "redisPasswordFile" ]) sharedSecrets
          );
        };

        assertions = map (name: {
          assertion = (cfg.registries.${name}.username == null) == (cfg.registries.${name}.passwordFile == null);
          message = "services.hubcache.registries.\"${name}\" needs both username and passwordFile, or neither.";
        }) (builtins.attrNames cfg.registries)
        ++ [
          {
            assertion = (cfg.credentials.username == null) == (cfg.credentials.passwordFile == null);
            message = "services.hubcache.credentials needs both username and passwordFile, or neither.";
          }
          {
            assertion = isAny cfg.listenAddress || lib.hasInfix ":" cfg.listenAddress || builtins.match "[0-9.]+" cfg.listenAddress != null;
            message = "services.hubcache.listenAddress must be numeric (such as 127.0.0.1), not the name ${cfg.listenAddress}: systemd opens the socket before names resolve.";
          }
          {
            assertion = !(lib.any (dir: lib.hasPrefix "${dir}/" "${toString cfg.dataDir}/") [ "/home" "/root" "/run" "/tmp" "/var/tmp" builtins.storeDir ]);
            message = "services.hubcache.dataDir is ${toString cfg.dataDir}; the service cannot keep files there. Choose a directory such as /srv/hubcache.";
          }
          {
            assertion = !(config.services.dockerRegistry.enable && config.services.dockerRegistry.port == cfg.port);
            message = "services.dockerRegistry and services.hubcache both want port ${toString cfg.port}. If hubcache replaces that registry's proxy mode, remove services.dockerRegistry (and revoke the token in its extraConfig, which everybody on this host can read in the Nix store); else change one port.";
          }
          {
            assertion = cfg.dockerPrune.enable -> docker.enable;
            message = "services.hubcache.dockerPrune.enable needs virtualisation.docker.enable: there are no Docker images to prune.";
          }
        ];

        warnings =
          lib.optional (cfg.openFirewall && isLoopback cfg.listenAddress)
            "services.hubcache.openFirewall opens port ${toString cfg.port}, but hubcache listens on ${cfg.listenAddress} alone. Set services.hubcache.listenAddress.";

        environment.etc."hubcache/config.yaml".source = configFile;
        networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall [ cfg.port ];

        systemd.tmpfiles.settings.hubcache = units.tmpfiles;
        systemd.sockets = units.sockets;
        systemd.services.hubcache = lib.mkMerge [
          units.services.hubcache
          {
            environment = config.networking.proxy.envVars;
            reloadTriggers = [ configFile ];
            # Also when the sockets change, because systemd doesn't start a socket whose
            # service is running.
            restartTriggers = [ atStart ] ++ lib.concatMap (socket: socket.listenStreams) (lib.attrValues units.sockets);
            # Restart it in one step: between a stop and a start the sockets would be closed.
            stopIfChanged = false;
          }
        ];

        # Its members may use the admin socket and hold off a prune.
        users.groups.${units.group} = { };
      }

      (lib.mkIf (toString cfg.dataDir != defaultDataDir) {
        users.users.hubcache = {
          isSystemUser = true;
          group = units.group;
          description = "hubcache";
        };
        systemd.tmpfiles.settings.hubcache.${toString cfg.dataDir}.d = {
          mode = "0700";
          user = "hubcache";
          group = units.group;
        };
      })

      (lib.mkIf (cfg.registryMirror && docker.enable) {
        virtualisation.docker.daemon.settings.registry-mirrors = [ mirror ];

        # When registry-mirrors names a loopback address, Docker 28 and later with the
        # containerd image store don't verify Docker Hub's certificate either: they use one
        # HTTP client for the mirror and for Docker Hub. When the mirror is named here, they
        # use two. Older daemons don't read this file.
        #
        # For the other registries that file is the only way to the cache.
        environment.etc = lib.mkMerge [
          {
            "docker/certs.d/docker.io/hosts.toml" = lib.mkIf (isLoopback mirrorHost) {
              text = lib.mkDefault (hostsFile "https://registry-1.docker.io");
            };
          }
          (lib.mapAttrs' (
            name: r:
            let
              plain = "http://${name}";
            in
            lib.nameValuePair "docker/certs.d/${name}/hosts.toml" {
              text = lib.mkDefault (hostsFile (if r.url or "" == plain then plain else "https://${name}"));
            }
          ) (removeAttrs cfg.registries [ "docker.io" ]))
        ];
      })

      (lib.mkIf cfg.dockerPrune.enable {
        systemd.services = {
          hubcache-docker-watch = units.services.hubcache-docker-watch // {
            restartTriggers = [ (builtins.toJSON settings.docker) ];
          };
          # A new configuration neither starts nor ends a prune.
          hubcache-docker-prune = units.services.hubcache-docker-prune // {
            restartIfChanged = false;
          };
        };
        systemd.timers = units.timers;
        warnings = lib.optional docker.autoPrune.enable "virtualisation.docker.autoPrune removes what services.hubcache.dockerPrune keeps: stopped containers, unused networks, and images that a service update would roll back to. It doesn't know of holds. Turn one of them off.";
      })
    ]
  );
}
