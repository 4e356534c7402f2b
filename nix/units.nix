# What hubcache's systemd units say, once: the NixOS module and the units for other
# distributions (packaging/systemd) are both made from this. Attributes are named as in
# NixOS. Nothing here depends on nixpkgs.
{
  # Absolute paths of the program, of kill(1) and of the configuration file.
  program,
  kill,
  config,
  # What the sockets listen on, as systemd's ListenStream= takes it.
  pull,
  admin,
  # The LoadCredential= of the access token; null for none.
  credential,
  dataDir ? "/var/lib/hubcache",
  # When the Docker host's images are looked at.
  dates ? "*:0/15",
  randomizedDelaySec ? "2min",
}:
let
  # The group whose members may change the cache and hold off a prune. It is static, and
  # systemd refuses a dynamic user of the same name, hence "hubcache-server".
  group = "hubcache";
  holdDir = "/run/hubcache/hold";

  dynamic = dataDir == "/var/lib/hubcache";
  # A dynamic user's state is chowned, file by file, whenever its id changes: with a
  # data directory of one's own, which is chosen because it is large, the user is static.
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

  # What asks Docker for anything is in its group, and with that as good as root. The
  # rest of the list keeps its mistakes small, not a burglar out.
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
      socketConfig = socket.socketConfig // {
        # "::" is every address, whatever the host's default.
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
    # Soft: Docker finds the cache up, and neither takes the other down.
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
        # The sockets stay open across a restart of the service: pulls wait, none fails.
        Sockets = [
          "hubcache-pull.socket"
          "hubcache-admin.socket"
        ];
        LimitNOFILE = 65536;
        PrivateUsers = true;
        # Not ProcSubset=pid: process_start_time_seconds needs /proc/stat.
        ProtectProc = "invisible";
        RestrictAddressFamilies = [
          "AF_INET"
          "AF_INET6"
          "AF_UNIX"
        ];
      }
      // (if credential == null then { } else { LoadCredential = credential; });
  };

  services.hubcache-docker-watch = {
    description = "Record of when Docker's images were last used";
    documentation = [ "man:hubcache(1)" ];
    after = [ "docker.service" ];
    wantedBy = [ "multi-user.target" ];
    # Docker may be away for a day; its watcher is there when it comes back.
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
      # 75: a hold is in force or the host is busy; the timer comes again.
      SuccessExitStatus = 75;
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

  # Not a RuntimeDirectory of the service: that would go with the service, and take the
  # admin socket and everybody's holds with it.
  tmpfiles = {
    "/run/hubcache".d = {
      mode = "0755";
      user = "root";
      group = "root";
    };
    # Reading a lock file is enough to lock it. They are made here, where the group gets
    # them, and not by the first service that comes along, whose umask would keep it out.
    ${holdDir}.d = {
      mode = "0750";
      user = "root";
      inherit group;
    };
    "${holdDir}/gate".f = lock;
    "${holdDir}/run".f = lock;
  };
}
