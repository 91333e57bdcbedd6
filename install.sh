#!/usr/bin/env bash
# Installs Hob into an environment of its own, or tests this checkout in one. `./install.sh --help` says how.
#
# What it needs: bash, a Python of 3.11 or later with venv, and pip's package sources. It writes into one folder, links two
# commands, and leaves nothing half-made: a new environment counts only once its stamp is written, and is removed when
# anything before that fails. Works as root and as a user, on Linux and macOS, and with bash 3.2.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
FOLDERS="cli daemon engine modelfiles registry"
PYTHON_CANDIDATES="python3.12 python3.13 python3.11 python3.14 python3"
TORCH_CPU_INDEX="https://download.pytorch.org/whl/cpu"
# Megabytes that an installation takes at its largest, with the downloads that pip keeps.
NEED_CPU_MB=2200 NEED_CUDA_MB=9500 NEED_TEST_MB=2900
# The tests compile the kernels with this version of triton, too: torch 2.11 brings it.
OLDER_TRITON=3.6.0

usage() {
    cat <<'TEXT'
Usage: ./install.sh [--run MODEL [PROMPT] | --test [PYTEST ARGUMENTS] | --uninstall] [--print-plan]

  (nothing)              Install Hob, or bring an installation up to date.
  --run MODEL [PROMPT]   Install, start the daemon and run the model.
  --test [ARGUMENTS]     Make an environment for tests in .venv-test, and run all checks and tests there.
  --uninstall            Remove Hob. The models stay.
  --print-plan           Only say what would be done.

Environment variables:
  HOB_HOME   One folder for everything: environment, commands, models, configuration.
             Default: /opt/hob for root, else ~/.local/share/hob (or under XDG_DATA_HOME);
             commands go to /usr/local/bin for root, else to ~/.local/bin.
  PYTHON     The Python to use. Default: the first of python3.12, 3.13, 3.11, 3.14 and python3 that will do.
TEXT
}

say() { printf '%s\n' "$*"; }
die() {
    printf 'Error: %s\n' "$*" >&2
    exit 1
}

# ---- places

is_root() { [ "$(id -u)" = 0 ]; }

set_places() {
    if [ -n "${HOB_HOME:-}" ]; then
        case "$HOB_HOME" in /*) ;; *) HOB_HOME="$PWD/$HOB_HOME" ;; esac
        export HOB_HOME
        BASE="$HOB_HOME" BIN="$HOB_HOME/bin"
    elif is_root; then
        BASE=/opt/hob BIN=/usr/local/bin
    else
        [ -n "${HOME:-}" ] || die "HOME is not set, so there is no place to install to; set HOB_HOME."
        BASE="${XDG_DATA_HOME:-$HOME/.local/share}/hob" BIN="$HOME/.local/bin"
    fi
    ENV="$BASE/env"
    if [ "$MODE" = test ]; then
        BASE="$ROOT" ENV="$ROOT/.venv-test"
    fi
}

# ---- decisions

has_nvidia_driver() {
    if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
        return 0
    fi
    [ -e /proc/driver/nvidia/version ]
}

# Version of a Python that is new enough, or nothing.
python_version() {
    "$1" -c 'import sys
if sys.version_info >= (3, 11): print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || true
}

# Sets PYTHONS to the usable ones, one a line, the most wanted first.
find_pythons() {
    local candidate version without_venv=""
    PYTHONS=""
    for candidate in ${PYTHON:-$PYTHON_CANDIDATES}; do
        candidate="$(command -v "$candidate" 2>/dev/null)" || continue
        version="$(python_version "$candidate")"
        [ -n "$version" ] || continue
        if "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
            PYTHONS="$PYTHONS$candidate"$'\n'
        else
            without_venv="$candidate"
        fi
    done
    [ -z "$PYTHONS" ] || return 0
    if [ -n "$without_venv" ]; then
        if [ "$MODE" = test ] && [ "$PLAN_ONLY" = no ] && is_root && command -v apt-get >/dev/null; then
            say "Installing python3-venv from Debian's packages."
            apt-get update -qq >/dev/null 2>&1 || true
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null 2>&1 ||
                die "apt-get could not install python3-venv, which $without_venv lacks."
            PYTHONS="$without_venv"$'\n'
            return 0
        fi
        die "$without_venv has no venv; install it (Debian and Ubuntu: apt install python3-venv)."
    fi
    [ -z "${PYTHON:-}" ] || die "PYTHON is $PYTHON, which is not a Python of 3.11 or later."
    die "no Python of 3.11 or later was found; install one (Debian and Ubuntu: apt install python3 python3-venv), or set PYTHON."
}

pinned() { sed -n "s/^$1==//p" "$ROOT/constraints-torch.txt"; }

# Whether pip's own sources (pip.conf, PIP_FIND_LINKS...) hold a CPU build of the pinned torch for this Python. A dry run
# answers: a local version such as 2.13.0+cpu never comes from PyPI.
offers_cpu_build() {
    local python="$1" probe="" answer=1
    if ! "$python" -m pip --version >/dev/null 2>&1; then # Debian's Python may come with venv and without pip
        probe="$(mktemp -d)"
        "$python" -m venv "$probe" >/dev/null 2>&1 || { rm -rf "$probe"; return 1; }
        python="$probe/bin/python"
    fi
    "$python" -m pip install --disable-pip-version-check --no-input --quiet --retries 1 --timeout 15 --dry-run --no-deps \
        --ignore-installed --report /dev/null "torch==$TORCH_VERSION+cpu" >/dev/null 2>&1 && answer=0
    [ -z "$probe" ] || rm -rf "$probe"
    return $answer
}

# The torch that a finished environment has already: its version where it imports, and "cpu" or "gpu". Nothing otherwise.
torch_there() {
    [ -f "$ENV/.hob-stamp" ] || return 0
    "$ENV/bin/python" -c 'import torch
print(torch.__version__, "gpu" if torch.version.cuda or getattr(torch.version, "hip", None) else "cpu")' 2>/dev/null || true
}

# Sets PYTHON_CHOSEN, TORCH (kept, cuda, cpu-local, cpu-index or plain), TORCH_WORDS and NEED_MB.
decide() {
    local there python
    TORCH_VERSION="$(pinned torch)"
    find_pythons
    PYTHON_CHOSEN="${PYTHONS%%$'\n'*}"
    NEED_MB=$NEED_CPU_MB
    there="$(torch_there)"
    if [ -n "$there" ] && { [ "${there#* }" = gpu ] || ! has_nvidia_driver; }; then
        TORCH=kept TORCH_WORDS="${there% *} is there already and is kept"
        NEED_MB=600
    elif has_nvidia_driver; then
        TORCH=cuda TORCH_WORDS="$TORCH_VERSION, the CUDA build (there is an NVIDIA driver)"
        NEED_MB=$NEED_CUDA_MB
    elif [ "$(uname -s)" != Linux ]; then
        TORCH=plain TORCH_WORDS="$TORCH_VERSION, the build for $(uname -s)"
    else
        TORCH=cpu-index TORCH_WORDS="$TORCH_VERSION, the CPU build from $TORCH_CPU_INDEX (no NVIDIA driver)"
        while IFS= read -r python; do
            if [ -n "$python" ] && offers_cpu_build "$python"; then
                TORCH=cpu-local TORCH_WORDS="$TORCH_VERSION, the CPU build from pip's own sources (no NVIDIA driver)"
                PYTHON_CHOSEN="$python"
                break
            fi
        done <<<"$PYTHONS"
    fi
    if [ "$MODE" = test ]; then
        NEED_MB=$((NEED_MB + NEED_TEST_MB))
    fi
}

# Megabytes free where a folder is, or will be.
free_mb() {
    local folder="$1"
    while [ ! -d "$folder" ]; do folder="$(dirname "$folder")"; done
    df -Pm "$folder" | awk 'NR == 2 { print $4 }'
}

print_plan() {
    say "python:      $PYTHON_CHOSEN ($(python_version "$PYTHON_CHOSEN"))"
    say "torch:       $TORCH_WORDS"
    say "environment: $ENV"
    [ "$MODE" = test ] || say "commands:    $BIN/hob, $BIN/hobd"
    say "disk:        $NEED_MB MB needed, $(free_mb "$ENV") MB free"
}

# ---- the environment

# A sum over everything that decides what the environment holds. In the test environment the source is linked, not copied.
inputs_sum() {
    local folders="$FOLDERS"
    [ "$MODE" = install ] || folders=""
    (
        cd "$ROOT"
        has_nvidia_driver && echo driver
        echo "${PYTHON:-}"
        # shellcheck disable=SC2086
        find pyproject.toml constraints.txt constraints-torch.txt $folders -type f ! -name '*.pyc' -print0 |
            LC_ALL=C sort -z | xargs -0 cksum
    ) | cksum
}

# Requirements of pyproject.toml, one a line, but torch, triton and ourselves.
requirements() {
    "$ENV/bin/python" - "$ROOT/pyproject.toml" "$MODE" <<'PY'
import re, sys, tomllib

with open(sys.argv[1], "rb") as file:
    toml = tomllib.load(file)
wanted = toml["project"]["dependencies"] + toml["build-system"]["requires"]
if sys.argv[2] == "test":
    wanted += sum(toml["project"]["optional-dependencies"].values(), [])
for requirement in wanted:
    if re.match(r"[A-Za-z0-9_.-]+", requirement).group() not in ("torch", "triton", toml["project"]["name"]):
        print(requirement)
PY
}

# pip in the new environment; its words go to a log, and on failure the one that matters is shown.
pip_install() {
    if ! "$ENV/bin/python" -m pip install --disable-pip-version-check --no-input --quiet "$@" >"$SCRATCH/pip.log" 2>&1; then
        if grep -q 'No space left on device' "$SCRATCH/pip.log"; then
            die "the disk is full: $(free_mb "$ENV") MB are left where $ENV is, and about $NEED_MB MB are needed."
        elif grep -qE 'NewConnectionError|Name or service not known|Temporary failure in name|ConnectTimeout|ProxyError|Network is unreachable' "$SCRATCH/pip.log"; then
            die "pip could not reach its package sources; check the network, or point pip at a mirror (PIP_INDEX_URL)."
        elif grep -q 'No matching distribution found' "$SCRATCH/pip.log"; then
            die "pip's sources lack a package ($(grep -m1 -o 'No matching distribution found for [^ ]*' "$SCRATCH/pip.log" | sed 's/.* //')); see 'pip config list', and check the network."
        fi
        tail -n 30 "$SCRATCH/pip.log" | sed 's/^/    /' >&2 # nothing of ours explains this one
        die "pip failed: $(grep -m1 -iE '^ *(error|ERROR)' "$SCRATCH/pip.log" || tail -n 1 "$SCRATCH/pip.log")"
    fi
}

install_torch() {
    case "$TORCH" in
    kept) ;;
    # A source of pip's own may hold a CPU build of the same version, which counts as newer: rule it out by name.
    cuda) pip_install "torch==$TORCH_VERSION,!=$TORCH_VERSION+cpu" ;;
    plain) pip_install "torch==$TORCH_VERSION" ;;
    cpu-local) pip_install "torch==$TORCH_VERSION+cpu" ;;
    cpu-index) pip_install --index-url "$TORCH_CPU_INDEX" "torch==$TORCH_VERSION+cpu" ;;
    esac
}

# Everything into $ENV. pip fetches all packages of a call before it changes anything, so an update that finds no network
# leaves the old installation as it was.
fill_environment() {
    say "Installing torch: $TORCH_WORDS."
    install_torch
    requirements >"$SCRATCH/requirements.txt"
    if [ "$MODE" = test ] && [ "$(uname -sm)" = "Linux x86_64" ] && [ "$TORCH" != cuda ]; then
        "$ENV/bin/python" -c 'import triton' 2>/dev/null || echo "triton==$(pinned triton)" >>"$SCRATCH/requirements.txt"
    fi
    say "Installing the other packages."
    pip_install -c "$ROOT/constraints.txt" -r "$SCRATCH/requirements.txt"
    # Without dependencies: on a CPU the declared triton would be a gigabyte that nothing uses.
    if [ "$MODE" = test ]; then
        pip_install --no-deps --no-build-isolation --editable "$ROOT"
    else
        pip_install --no-deps --no-build-isolation --force-reinstall "$ROOT"
    fi
}

prepare_environment() {
    local sum free
    sum="$(inputs_sum)"
    if [ -f "$ENV/.hob-stamp" ] && [ "$(cat "$ENV/.hob-stamp")" = "$sum" ]; then
        return 0
    fi
    decide
    free="$(free_mb "$ENV")"
    [ "$free" -ge "$NEED_MB" ] ||
        die "$free MB are free where $ENV is to be, and about $NEED_MB MB are needed; make room, or set HOB_HOME."
    mkdir -p "$BASE" 2>/dev/null || die "$BASE cannot be written; set HOB_HOME to a folder that can."
    [ -w "$BASE" ] || die "$BASE cannot be written; set HOB_HOME to a folder that can."
    take_lock
    # A daemon of the old code would start workers of the new one.
    if [ "$MODE" = install ] && [ -x "$ENV/bin/hob" ] && "$ENV/bin/hob" shutdown >/dev/null 2>&1; then
        say "The daemon that was running is ended; the next command starts the new one."
    fi
    if [ "$TORCH" = kept ]; then
        say "Updating $ENV."
        echo updating >"$ENV/.hob-stamp"
        fill_environment
    else
        say "Making $ENV with $PYTHON_CHOSEN."
        rm -rf "$ENV.old"
        [ ! -e "$ENV" ] || mv "$ENV" "$ENV.old"
        BUILDING=yes
        "$PYTHON_CHOSEN" -m venv "$ENV" >"$SCRATCH/venv.log" 2>&1 ||
            die "$PYTHON_CHOSEN could not make an environment: $(tail -n 1 "$SCRATCH/venv.log")"
        fill_environment
    fi
    printf '%s\n' "$sum" >"$ENV/.hob-stamp"
    BUILDING=no
    rm -rf "$ENV.old"
}

# One install.sh at a time. A lock whose owner is gone is taken over.
take_lock() {
    LOCK="$ENV.lock"
    if ! mkdir "$LOCK" 2>/dev/null; then
        local owner
        owner="$(cat "$LOCK/pid" 2>/dev/null || true)"
        if [ -z "$owner" ] || kill -0 "$owner" 2>/dev/null; then
            local held="$LOCK"
            LOCK=""
            die "another install.sh is at work on $ENV; if that is not so, remove $held."
        fi
    fi
    echo $$ >"$LOCK/pid"
}

clean_up() {
    local status=$?
    trap - EXIT
    if [ "$BUILDING" = yes ]; then
        rm -rf "$ENV"
        [ ! -e "$ENV.old" ] || mv "$ENV.old" "$ENV"
    fi
    [ -z "$LOCK" ] || rm -rf "$LOCK"
    [ -z "$SCRATCH" ] || rm -rf "$SCRATCH"
    [ "$status" = 0 ] || rmdir "$BASE" 2>/dev/null || true # only where nothing is in it
    exit $status
}

link_commands() {
    local name
    mkdir -p "$BIN"
    for name in hob hobd; do
        if [ -e "$BIN/$name" ] && [ ! -L "$BIN/$name" ]; then
            die "$BIN/$name is there and is not ours; move it away, or run $ENV/bin/$name by its path."
        fi
        ln -sf "$ENV/bin/$name" "$BIN/$name"
    done
}

on_path() { case ":$PATH:" in *":$BIN:"*) return 0 ;; *) return 1 ;; esac; }

# ---- what was asked for

install_hob() {
    prepare_environment
    link_commands
    if on_path; then
        say "Hob is installed in $ENV; the command is hob."
    else
        say "Hob is installed in $ENV; the command is $BIN/hob. To type just hob, add $BIN to your PATH."
    fi
    [ -z "${HOB_HOME:-}" ] || say "Models and configuration are there, too, where HOB_HOME is set: export HOB_HOME=$HOB_HOME"
}

# A second triton for tests/kernels/test_offline_compile.py, in a folder of its own that no import finds by itself.
install_older_triton() {
    local folder="$ENV/triton-$OLDER_TRITON"
    [ "$(uname -sm)" = "Linux x86_64" ] || return 0
    if [ ! -d "$folder" ]; then
        say "Installing triton $OLDER_TRITON into $folder, to compile the kernels with it as well."
        rm -rf "$folder.part"
        pip_install --no-deps --target "$folder.part" "triton==$OLDER_TRITON"
        mv "$folder.part" "$folder"
    fi
    export HOB_TEST_OLDER_TRITON="$folder"
}

# Programs that tests start: a real registry, what breaks system calls off, and a terminal. As an ordinary user, or without apt, those
# tests skip with a reason.
install_test_programs() {
    local missing=""
    [ -x /usr/bin/docker-registry ] || missing="docker-registry"
    [ -x /usr/bin/strace ] || missing="$missing strace"
    [ -x /usr/bin/tmux ] || missing="$missing tmux"
    { [ -n "$missing" ] && is_root && command -v apt-get >/dev/null; } || return 0
    say "Installing ${missing# } from Debian's packages, for the tests."
    apt-get update -qq >/dev/null 2>&1 || true
    # shellcheck disable=SC2086 # one word a package
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 ||
        say "apt-get could not install them; the tests that need them are left out."
}

run_tests() {
    local status=0
    prepare_environment
    install_older_triton
    install_test_programs
    cd "$ROOT"
    export PATH="$ENV/bin:$PATH"
    # Both run, so that one report shows everything that is wrong.
    "$ENV/bin/python" tools/check.py || status=1
    "$ENV/bin/python" -m pytest "$@" || status=$?
    return $status
}

uninstall() {
    local name
    if [ ! -d "$ENV" ]; then
        say "Hob is not installed in $ENV."
        return 0
    fi
    "$ENV/bin/hob" shutdown >/dev/null 2>&1 || true # none may be running
    "$ENV/bin/python" -P -c 'import os
from modelfiles.settings import Settings, cache_dir, default_config_file
settings = Settings.load(os.environ)
places = settings.models_dir, settings.state_dir, default_config_file(os.environ), cache_dir(os.environ)
print(*places, sep="\n")' >"$SCRATCH/places" 2>/dev/null || true
    { read -r MODELS && read -r STATE && read -r CONFIG && read -r CACHE; } <"$SCRATCH/places" ||
        MODELS="" STATE="" CONFIG="" CACHE=""
    for name in hob hobd; do
        [ "$(readlink "$BIN/$name" 2>/dev/null)" != "$ENV/bin/$name" ] || rm -f "$BIN/$name"
    done
    rm -f "$ENV/.hob-stamp" # first: without it, what an interrupted removal leaves does not count as installed
    rm -rf "$ENV" "$ENV.old"
    [ -z "$STATE" ] || rm -rf "$STATE/hob.log" "$STATE/history"
    [ -z "$CACHE" ] || rm -rf "$CACHE/triton"
    for name in "$STATE" "$CACHE" "$BIN" "$BASE"; do
        case "$name" in "" | */.local/bin | /usr/local/bin) ;; *) rmdir "$name" 2>/dev/null || true ;; esac
    done
    say "Hob is removed."
    [ ! -d "$MODELS" ] || say "The models are still in $MODELS; remove that folder to free $(du -sm "$MODELS" | cut -f1) MB."
    [ ! -f "$CONFIG" ] || say "Your configuration is still in $CONFIG."
}

main() {
    MODE=install PLAN_ONLY=no BUILDING=no LOCK="" SCRATCH="" RUN=no
    while [ $# -gt 0 ]; do
        case "$1" in
        --print-plan) PLAN_ONLY=yes ;;
        --test) MODE=test ;;
        --uninstall) MODE=uninstall ;;
        --run)
            RUN=yes
            [ $# -ge 2 ] || die '--run needs a model: ./install.sh --run tale "Tell me a story about a fox."'
            ;;
        -h | --help) usage; exit 0 ;;
        *)
            # The rest belongs to --run or --test.
            if [ "$RUN" = yes ] || [ "$MODE" = test ]; then break; fi
            say "install.sh does not know $1." >&2
            usage >&2
            exit 2
            ;;
        esac
        shift
    done
    set_places
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    SCRATCH="$(mktemp -d)"
    if [ "$PLAN_ONLY" = yes ]; then
        decide
        print_plan
        exit 0
    fi
    case "$MODE" in
    test) run_tests "$@" ;;
    uninstall) uninstall ;;
    install)
        install_hob
        if [ "$RUN" = yes ]; then
            # With a prompt there is nothing to read: an open pipe on stdin must not be waited for.
            if [ $# -ge 2 ]; then
                "$ENV/bin/hob" run "$@" </dev/null
            else
                "$ENV/bin/hob" run "$@"
            fi
        fi
        ;;
    esac
}

main "$@"
