{
  lib,
  stdenv,
  buildGoModule,
  installShellFiles,
  versionCheckHook,
  # The flake passes the revision.
  version ? "0-unstable",
}:
buildGoModule (finalAttrs: {
  pname = "hubcache";
  inherit version;

  # Only what Go reads and what is installed, so that a change of the documentation doesn't build
  # the program again. Everything that `go mod vendor` looks at is here: vendorHash depends on it.
  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../go.mod
      ../go.sum
      ../admin
      ../answer
      ../boltfile
      ../auth
      ../calls
      ../cmd
      ../compose
      ../content
      ../cooldown
      ../disk
      ../fetch
      ../history
      ../image
      ../index
      ../inventory
      ../integration
      ../lru
      ../name
      ../prune
      ../quarantine
      ../registry
      ../slots
      ../storage
      ../tier
      ../transfer
      ../upstream
      ../warm
      ../packaging/grafana
      ../packaging/prometheus
      # The tests of the settings compare these with the table.
      ../docs/use/config.example.yaml
      ../nix/restart-settings.json
    ];
  };

  # Written by nix/update-vendor-hash.
  vendorHash = "sha256-79wqSMH54HOlCc7hjrl6Mi+haY/6agN+pI2m+3iW17c=";

  env.CGO_ENABLED = 0;
  # These need root and a Docker daemon. The tests of the other packages need only
  # loopback.
  excludedPackages = [ "integration" ];
  ldflags = [
    "-s"
    "-X main.version=${finalAttrs.version}"
  ];

  nativeBuildInputs = [ installShellFiles ];
  postInstall = ''
    install -D -m 644 -t $out/share/hubcache/grafana packaging/grafana/*
    install -D -m 644 -t $out/share/hubcache/prometheus packaging/prometheus/*
  ''
  + lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    for shell in bash zsh fish; do
      $out/bin/hubcache completion $shell >hubcache.$shell
    done
    installShellCompletion --cmd hubcache hubcache.{bash,zsh,fish}
    $out/bin/hubcache docs man man
    installManPage man/*
  '';

  nativeInstallCheckInputs = [ versionCheckHook ];
  versionCheckProgramArg = "version";
  doInstallCheck = true;

  meta = {
    description = "Pull-through cache for Docker Hub with a byte budget";
    homepage = "https://github.com/hubcache/hubcache";
    license = lib.licenses.asl20;
    platforms = lib.platforms.linux;
    mainProgram = "hubcache";
    maintainers = [ ];
  };
})
