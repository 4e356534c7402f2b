# The configuration of the container image.
{
	architecture: $arch,
	os: "linux",
	created: $created,
	config: {
		User: $user,
		Env: ["PATH=/usr/bin"],
		Entrypoint: ["/usr/bin/hubcache"],
		Cmd: ["serve"],
		ExposedPorts: {"5000/tcp": {}},
		Volumes: {"/var/lib/hubcache": {}},
		WorkingDir: "/",
		# Times are in nanoseconds. The check asks the admin listener, wherever admin.listen says it is.
		Healthcheck: {
			Test: ["CMD", "/usr/bin/hubcache", "stats", "--json"],
			Interval: 30000000000,
			Timeout: 5000000000,
			StartPeriod: 10000000000,
			Retries: 3
		},
		Labels: {
			"org.opencontainers.image.title": "hubcache",
			"org.opencontainers.image.description": "Pull-through cache for Docker Hub",
			"org.opencontainers.image.licenses": "Apache-2.0",
			"org.opencontainers.image.version": $version
		}
	},
	rootfs: {type: "layers", diff_ids: [$layer]},
	history: [{created: $created, created_by: "packaging/dist"}]
}
