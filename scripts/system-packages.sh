#!/bin/sh
# Debian packages that some tests use: PostgreSQL with pgvector, and Chromium. Without them those tests skip.
set -u
missing=""
command -v chromium >/dev/null 2>&1 || missing="$missing chromium chromium-driver"
ls /usr/share/postgresql/*/extension/vector.control >/dev/null 2>&1 || missing="$missing postgresql pgvector"
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
    echo "not installed, and not to be installed here (needs root and apt-get):$missing; their tests will skip"
    exit 0
fi
apt-get update -qq >/dev/null 2>&1
case "$missing" in
*pgvector*)
    package=$(apt-cache search --names-only '^postgresql-[0-9]+-pgvector$' | sort -V | tail -n 1 | cut -d' ' -f1)
    missing="$(echo "$missing" | sed 's/ postgresql pgvector//') postgresql $package"
    ;;
esac
# A cluster that starts by itself would hold a port; the tests make their own.
conf=/etc/postgresql-common/createcluster.conf
[ -e "$conf" ] || { mkdir -p "${conf%/*}" && echo "create_main_cluster = false" >"$conf"; }
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 ||
    echo "could not install:$missing; their tests will skip"
exit 0
