#!/bin/sh
# Install what is missing, and only that: Debian packages, the virtual environment, the project.
#   setup.sh venv     the virtual environment
#   setup.sh lab      and what the lab calls
#   setup.sh test     and what the tests and the benchmarks call
set -eu
cd "$(dirname "$0")/../.."
VENV=.venv
STAMP=$VENV/.tortie-installed
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

fail() {
    printf 'Error: %s\n' "$*" >&2
    exit 1
}

# with_dots LABEL COMMAND...: a dot per second while it runs; its output only when it fails.
with_dots() {
    label=$1
    shift
    log=$(mktemp)
    printf '%s ' "$label"
    "$@" >"$log" 2>&1 </dev/null &
    job=$!
    start=$(date +%s)
    while kill -0 "$job" 2>/dev/null; do
        sleep 1
        printf '.'
    done
    if wait "$job"; then
        printf ' done (%s s)\n' "$(($(date +%s) - start))"
        rm -f "$log"
    else
        printf ' failed\n'
        cat "$log" >&2
        rm -f "$log"
        return 1
    fi
}

# --- Debian packages ------------------------------------------------------------------------------

# command:package, or command:newer-name|older-name
packages_for() {
    case $1 in
    venv) ;;
    lab) echo ip:iproute2 ping:iputils-ping nsenter:util-linux "etcd:etcd-server|etcd" \
        "etcdctl:etcd-client" ;;
    test) packages_for lab
        echo bird:bird2 gobgpd:gobgpd nft:nftables tcpdump:tcpdump /usr/lib/frr/bgpd:frr \
            mosquitto:mosquitto openssl:openssl prometheus:prometheus ;;
    esac
}

missing_packages() {
    for pair in $(packages_for "$1"); do
        command -v "${pair%%:*}" >/dev/null 2>&1 || echo "${pair#*:}"
    done
}

# The first of the names that this release has.
available() {
    for name in $(echo "$1" | tr '|' ' '); do
        if apt-cache show "$name" 2>/dev/null | grep -q '^Package:'; then
            echo "$name"
            return
        fi
    done
    echo "${1%%|*}"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

install_packages() {
    missing=$*
    [ -n "$missing" ] || return 0
    plain=$(echo "$missing" | sed 's/|[^ ]*//g')
    command -v apt-get >/dev/null 2>&1 ||
        fail "these are missing, and this is neither Debian nor Ubuntu: install the programs of the packages $plain"
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null 2>&1 ||
            fail "packages are missing and there is no sudo; as root run: apt-get install $plain"
        sudo -v || fail "packages are missing; as root run: apt-get install $plain"
    fi
    with_dots "Reading Debian's package lists" as_root apt-get update -q ||
        fail "apt-get update failed: is there a network?"
    names=
    for one in $missing; do
        names="$names $(available "$one")"
    done
    # The packages would start their daemons on this machine: the lab only wants the programs.
    quiet_services
    # shellcheck disable=SC2086
    if with_dots "Installing$names" as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends $names; then
        loud_services
    else
        loud_services
        fail "apt-get install$names failed"
    fi
    if [ -d /run/systemd/system ]; then
        for name in $names; do
            case $name in
            etcd-server | etcd) as_root systemctl disable -q --now etcd || : ;;
            bird2) as_root systemctl disable -q --now bird || : ;;
            frr | gobgpd | mosquitto | prometheus) as_root systemctl disable -q --now "$name" || : ;;
            esac
        done
    fi
}

POLICY=/usr/sbin/policy-rc.d
quiet_services() {
    made_policy=
    [ -e $POLICY ] && return
    printf '#!/bin/sh\nexit 101\n' | as_root tee $POLICY >/dev/null
    as_root chmod 755 $POLICY
    made_policy=yes
    trap loud_services EXIT INT TERM
}

loud_services() {
    [ -n "${made_policy:-}" ] || return 0
    as_root rm -f $POLICY
    made_policy=
}

# --- Python ---------------------------------------------------------------------------------------

usable() {
    "$1" -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] < (3, 15)))' 2>/dev/null
}

find_python() {
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null 2>&1 && usable "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

make_venv() {
    # Idempotent and quick: the stamp says what was installed, and from what.
    want=$(cat requirements.lock pyproject.toml | cksum)
    if [ -x $VENV/bin/python ] && [ "$(cat $STAMP 2>/dev/null)" = "$want" ] &&
        $VENV/bin/python -c '' 2>/dev/null; then
        return 0
    fi
    if ! { [ -x $VENV/bin/python ] && usable $VENV/bin/python; }; then
        if ! command -v python3 >/dev/null 2>&1 && command -v apt-get >/dev/null 2>&1; then
            install_packages python3 python3-venv
        fi
        python=$(find_python) || fail "Tortie needs Python 3.11 to 3.14, and there is none on PATH" \
            "(python3 is $(python3 -V 2>&1 || :)); set PYTHON to one, or install python3.11 or newer"
        if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
            install_packages "python$version-venv|python3-venv"
        fi
        rm -rf $VENV
        with_dots "Creating $VENV with $("$python" -V)" "$python" -m venv $VENV || fail "$VENV could not be made"
    fi
    with_dots "Installing the locked Python packages" $VENV/bin/python -m pip install -q \
        --disable-pip-version-check --require-hashes -r requirements.lock || fail "pip failed (see above)"
    # The build backend comes from the lock, too: nothing is fetched unchecked.
    with_dots "Installing Tortie" $VENV/bin/python -m pip install -q --disable-pip-version-check \
        --no-deps --no-build-isolation -e . || fail "pip failed (see above)"
    printf '%s\n' "$want" >$STAMP
}

add_manifest_tools() {
    # 170 MB, so only for the tests: kubectl, and the Kubernetes API's schemas.
    want=$(cksum <tests/manifests.lock)
    [ "$(cat $STAMP.manifests 2>/dev/null)" != "$want" ] || return 0
    with_dots "Installing the checkers of the Kubernetes manifests" $VENV/bin/python -m pip install -q \
        --disable-pip-version-check --require-hashes -r tests/manifests.lock || fail "pip failed (see above)"
    printf '%s\n' "$want" >$STAMP.manifests
}

case ${1:-} in
venv | lab | test) ;;
*) fail "usage: setup.sh venv|lab|test" ;;
esac
# shellcheck disable=SC2046
install_packages $(missing_packages "$1")
make_venv
[ "$1" != test ] || add_manifest_tools
