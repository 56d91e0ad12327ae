#!/bin/sh
# Installs redis-server through apt for the tests of the cache; they skip what needs it where it is not there. The
# server is not started: each test starts one of its own on a free port.
set -eu
if command -v redis-server >/dev/null; then
    redis-server --version
    exit 0
fi
as_root=""
if [ "$(id -u)" -ne 0 ]; then
    as_root=sudo
fi
$as_root apt-get update -qq
# A package may ask for its service to be started; policy-rc.d is how Debian says no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
    trap '$as_root rm -f "$policy"' EXIT
fi
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server >/dev/null
redis-server --version
