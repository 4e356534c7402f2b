# Writes hosts.toml for each registry of $REGISTRIES, lines of a name and the URL of its server, and
# removes what it has written when it ends. A file of somebody else's stays as it is.
set -eu
mark="# Written by hubcache's chart, and removed with it."

remove() {
	for file in "$CERTS"/*/hosts.toml; do
		[ "$(head -n 1 "$file" 2>/dev/null)" = "$mark" ] || continue
		rm -f "$file"
		rmdir "${file%/*}" 2>/dev/null || true
	done
}

# The shell runs traps only between commands, so it waits for a sleep in the background.
trap 'remove; kill "$sleep" 2>/dev/null || true; exit 0' TERM INT
sleep=

case $HOST_IP in
*:*) HOST_IP="[$HOST_IP]" ;;
esac
URL=$(echo "$URL" | sed "s/HOST_IP/$HOST_IP/") # of a node port

remove # of registries that are no longer named
echo "$REGISTRIES" | while read -r name server; do
	[ -n "$name" ] || continue
	file=$CERTS/$name/hosts.toml
	if [ -e "$file" ]; then
		echo "$file is not the chart's, and stays as it is" >&2
		continue
	fi
	mkdir -p "$CERTS/$name"
	# The whole file at once: containerd may read it at any time.
	cat >"$file.new" <<-END
		$mark
		server = "$server"

		[host."$URL"]
		  capabilities = ["pull", "resolve"]
		  dial_timeout = "2s"
	END
	mv "$file.new" "$file"
	echo "$file names $URL"
done

while :; do
	sleep 3600 &
	sleep=$!
	wait "$sleep" || true
done
