# hubcache's systemd units. The NixOS module and the units for other distributions
# (packaging/systemd) are both made from this file. Attributes are named as in NixOS.
# Nothing here depends on nixpkgs.
{
  # Absolute paths of the program, of kill(1) and of the configuration file.
  program,
  kill,
  config,
  # The addresses of the sockets, as systemd's ListenStream= takes them.
  pull,
  admin,
  # LoadCredential= for each access token.
  credentials,
  dataDir ? "/var/lib/hubcache",
  # When prune looks whether the Docker host's disk is full.
  dates ? "*:0/15",
  randomizedDelaySec ? "2min",
}:
let
  # The group whose members may use the admin socket and hold off a prune. The group is
  # static, and systemd refuses a dynamic user of the same name, so the user is
  # "hubcache-server".
  group = "hubcache";
  holdDir = "/run/hubcache/hold";

  dynamic = dataDir == "/var/lib/hubcache";
  # When the ID of a dynamic user changes, systemd changes the owner of every file of its
  # state. A data directory that the administrator chose is probably large, so its user is
  # static.
  identity =
    if dynamic then
      {
        DynamicUser = true;
        User = "hubcache-server";
        StateDirectory = "hubcache";
        StateDirectoryMode = "0700";
      }
    else
      {
        User = group;
        Group = group;
        ReadWritePaths = [ dataDir ];
      };

  hardened = {
    CapabilityBoundingSet = "";
    DevicePolicy = "closed";
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    NoNewPrivileges = true;
    PrivateDevices = true;
    PrivateTmp = true;
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHome = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectSystem = "strict";
    RemoveIPC = true;
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    SystemCallErrorNumber = "EPERM";
    SystemCallFilter = [
      "@system-service"
      "~@privileged"
      "~@resources"
    ];
    UMask = "0077";
  };

  # Membership in the group docker, which these services need, is as good as root. So the
  # other settings limit the damage of a mistake, and don't stop an attacker.
  ofDocker = hardened // {
    DynamicUser = true;
    User = "hubcache-docker";
    SupplementaryGroups = [
      "docker"
      group
    ];
    StateDirectory = "hubcache-docker";
    StateDirectoryMode = "0700";
    RestrictAddressFamilies = "AF_UNIX";
    PrivateNetwork = true;
    IPAddressDeny = "any";
  };

  lock = {
    mode = "0640";
    user = "root";
    inherit group;
  };

  socketOf = name: streams: {
    wantedBy = [ "sockets.target" ];
    listenStreams = streams;
    socketConfig = {
      FileDescriptorName = name;
      Service = "hubcache.service";
    };
  };
in
{
  inherit group holdDir;

  sockets.hubcache-pull =
    let
      socket = socketOf "pull" pull;
    in
    socket
    // {
      description = "Pull API of hubcache";
      # systemd gives the other socket to its group in a process that has all of systemd's sockets
      # open for that time. When both are restarted, this one waits until that process has ended:
      # else its address is still in use.
      after = [ "hubcache-admin.socket" ];
      socketConfig = socket.socketConfig // {
        # "::" includes the IPv4 addresses, whatever the host's default is.
        BindIPv6Only = "both";
        # An address of the LAN may come up later than this socket.
        FreeBind = true;
      };
    };

  sockets.hubcache-admin =
    let
      socket = socketOf "admin" admin;
    in
    socket
    // {
      description = "Administration of hubcache";
      socketConfig = socket.socketConfig // {
        SocketGroup = group;
        SocketMode = "0660";
      };
    };

  services.hubcache = {
    description = "Pull-through cache for Docker Hub";
    documentation = [ "man:hubcache(1)" ];
    after = [ "network-online.target" ];
    wants = [ "network-online.target" ];
    # systemd can't restart a socket whose service runs. With this it restarts the service, too.
    requires = [
      "hubcache-pull.socket"
      "hubcache-admin.socket"
    ];
    # Only an order: Docker finds the cache running, and neither stops the other.
    before = [ "docker.service" ];
    wantedBy = [ "multi-user.target" ];
    unitConfig = if dynamic then { } else { RequiresMountsFor = dataDir; };
    serviceConfig =
      hardened
      // identity
      // {
        Type = "notify";
        NotifyAccess = "main";
        WatchdogSec = "30s";
        ExecStart = "${program} serve --config ${config}";
        ExecReload = "${kill} -HUP $MAINPID";
        Restart = "on-failure";
        RestartSec = "1s";
        # The sockets stay open while the service restarts: pulls wait, and none fails.
        Sockets = [
          "hubcache-pull.socket"
          "hubcache-admin.socket"
        ];
        LimitNOFILE = 65536;
        PrivateUsers = true;
        # Not ProcSubset=pid, because process_start_time_seconds needs /proc/stat.
        ProtectProc = "invisible";
        RestrictAddressFamilies = [
          "AF_INET"
          "AF_INET6"
          "AF_UNIX"
        ];
      }
      // (if credentials == [ ] then { } else { LoadCredential = credentials; });
  };

  services.hubcache-docker-watch = {
    description = "Record of when Docker's images were last used";
    documentation = [ "man:hubcache(1)" ];
    after = [ "docker.service" ];
    wantedBy = [ "multi-user.target" ];
    # Docker may be stopped for a day; this service runs again when Docker does.
    unitConfig.StartLimitIntervalSec = 0;
    serviceConfig = ofDocker // {
      Type = "exec";
      ExecStart = "${program} docker watch --config ${config}";
      Restart = "always";
      RestartSec = "10s";
    };
  };

  services.hubcache-docker-prune = {
    description = "Removal of Docker images that nothing has used for long";
    documentation = [ "man:hubcache(1)" ];
    after = [ "docker.service" ];
    serviceConfig = ofDocker // {
      Type = "oneshot";
      ExecStart = "${program} docker prune --apply --config ${config}";
      # 75: a hold is in force or the host is busy. The timer starts it again later.
      SuccessExitStatus = 75;
      # A run ends by itself: it waits at most max_wait for holds, and ten minutes for each
      # deletion. Without this a unit of this type may run for ever, and the timer never starts
      # it again. A run that may wait longer for holds says so to systemd (EXTEND_TIMEOUT_USEC).
      TimeoutStartSec = "2h";
      NotifyAccess = "main";
      CPUSchedulingPolicy = "idle";
      IOSchedulingClass = "idle";
    };
  };

  timers.hubcache-docker-prune = {
    description = "Removal of Docker images that nothing has used for long";
    wantedBy = [ "timers.target" ];
    timerConfig = {
      OnCalendar = dates;
      RandomizedDelaySec = randomizedDelaySec;
    };
  };

  # This is not a RuntimeDirectory of the service, which would be removed with the service,
  # and the admin socket and all holds with it.
  tmpfiles = {
    "/run/hubcache".d = {
      mode = "0755";
      user = "root";
      group = "root";
    };
    # A process that can read a lock file can lock it. The files are made here, with the group; a
    # service that made them would keep the group out by its umask.
    ${holdDir}.d = {
      mode = "0750";
      user = "root";
      inherit group;
    };
    "${holdDir}/gate".f = lock;
    "${holdDir}/run".f = lock;
  };
}
