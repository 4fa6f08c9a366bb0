#!/bin/bash
# Installs the named Debian packages whose programs are missing.
#
# usage: need.sh [postgresql] [pgbouncer] [haproxy] [slapd] [libpam0g-dev] [libpam-wrapper]
#                [prometheus]

set -euo pipefail

present() {
    case $1 in
    postgresql)
        compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null && return
        command -v pg_config >/dev/null && [ -x "$(pg_config --bindir)/initdb" ]
        ;;
    # Its promtool judges our metrics.
    prometheus) command -v promtool >/dev/null ;;
    libpam0g-dev) [ -e /usr/include/security/pam_appl.h ] ;;
    libpam-wrapper) compgen -G '/usr/lib/*/libpam_wrapper.so' >/dev/null ;;
    *) PATH=$PATH:/usr/sbin:/usr/local/sbin command -v "$1" >/dev/null ;;
    esac
}

missing=()
for package in "$@"; do
    present "$package" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "please install: ${missing[*]}" >&2
    exit 1
fi
root=()
[ "$(id -u)" -eq 0 ] || root=(sudo)
echo "installing ${missing[*]}" >&2
# No service is to be started on this machine, least of all on the ports that we want.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee $policy >/dev/null
    "${root[@]}" chmod 755 $policy
    trap '"${root[@]}" rm -f $policy' EXIT
fi
"${root[@]}" apt-get update -qq >&2
"${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
