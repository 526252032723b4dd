#!/bin/sh
# usage: find_python.sh [PYTHON]
# Print the path of a CPython >= 3.12 that really runs, or say what to install. Where none is named, it is looked for on
# the PATH, then among pyenv's, then among those that uv fetched before; at last uv fetches one into .tools/python.
# Version managers put shims on the PATH that answer to a name and then fail, so each candidate is run before it is
# believed. PyPy and free-threaded builds are passed over: the engines have no wheels for them.
set -u

ROOT=$(cd "$(dirname "$0")/.." && pwd) || exit 1
FETCHED=$ROOT/.tools/python
FETCH=3.13
OS_RELEASE=${OS_RELEASE:-/etc/os-release}

say() {
  echo "setup: $*" >&2
}

good() {
  "$1" -c '
import ensurepip, sys, sysconfig, venv
free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
sys.exit(sys.version_info < (3, 12) or sys.implementation.name != "cpython" or free_threaded)
' >/dev/null 2>&1 </dev/null
}

# Print the first of the given programs that is a good Python, and end the script.
take_first_good() {
  for candidate in "$@"; do
    if [ -x "$candidate" ] && good "$candidate"; then
      echo "$candidate"
      exit 0
    fi
  done
}

look_on_path() {
  for name in python3.14 python3.13 python3.12 python3 python; do
    take_first_good "$(command -v "$name" 2>/dev/null)"
  done
}

look_in_pyenv() {
  for versions in "${PYENV_ROOT:-$HOME/.pyenv}/versions" "$HOME/.pyenv/pyenv-win/versions"; do
    for minor in 3.14 3.13 3.12 ''; do
      take_first_good "$versions/$minor"*/bin/python "$versions/$minor"*/python.exe
    done
  done
}

look_among_fetched() {
  for home in "$FETCHED" "${XDG_DATA_HOME:-$HOME/.local/share}/uv/python"; do
    take_first_good "$home"/cpython-*/bin/python3 "$home"/cpython-*/python.exe
  done
}

# Set `uv` to a program that runs: the one of the PATH, or one that an older Python installs into `scratch`.
get_uv() {
  if uv=$(command -v uv 2>/dev/null) && "$uv" --version >/dev/null 2>&1; then
    return 0
  fi
  for name in python3 python; do
    old=$(command -v "$name" 2>/dev/null) || continue
    "$old" -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1 && break
    old=
  done
  if [ -z "${old:-}" ]; then
    say "uv, which could fetch a Python, is not here, and neither is a Python that could install it"
    return 1
  fi
  if ! "$old" -m pip --version >/dev/null 2>&1; then
    if ! "$old" -m venv "$scratch/venv" >/dev/null 2>&1; then
      say "uv, which could fetch a Python, is not here, and $old has neither pip nor venv to install it"
      return 1
    fi
    for old in "$scratch"/venv/bin/python "$scratch"/venv/Scripts/python.exe; do
      [ -x "$old" ] && break
    done
  fi
  say "$old installs uv for this once"
  awk '/^[^ #]/ { wanted = /^uv==/ } wanted' "$ROOT/requirements.txt" >"$scratch/uv.txt"
  if ! "$old" -m pip install --quiet --disable-pip-version-check --require-hashes --target "$scratch/uv" \
    --requirement "$scratch/uv.txt" >&2; then
    say "uv could not be installed"
    return 1
  fi
  uv=$scratch/uv/bin/uv
}

fetch() {
  scratch=$(mktemp -d) || return 1
  trap 'rm -rf "$scratch"' EXIT
  get_uv || return 1
  take_first_good "$("$uv" python find --system --no-python-downloads '>=3.12' 2>/dev/null)"
  say "no Python >= 3.12 is here; uv fetches Python $FETCH (about 30 MB) into $FETCHED"
  if ! UV_PYTHON_INSTALL_DIR=$FETCHED UV_PYTHON_INSTALL_BIN=0 UV_PYTHON_INSTALL_REGISTRY=0 \
    "$uv" python install "$FETCH" >&2; then
    say "uv could not fetch it"
    return 1
  fi
  look_among_fetched
  say "what uv fetched does not run here"
  return 1
}

# The value of a key of os-release; empty where there is none.
release() {
  [ -r "$OS_RELEASE" ] && (. "$OS_RELEASE" && eval "echo \"\${$1:-}\"")
}

by_uv_or_pyenv() {
  echo "  sudo apt install pipx && pipx install uv && ~/.local/bin/uv python install $FETCH"
  echo "  or, with pyenv: pyenv install $FETCH"
}

# What to type on this system; each line is true there.
advise() {
  id=$(release ID) version=$(release VERSION_ID)
  case "$(uname -s)" in
    Darwin) echo "  brew install python@3.12" && return ;;
    MINGW* | MSYS* | CYGWIN*) echo "  winget install Python.Python.3.12" && return ;;
  esac
  case "$id" in
    debian)
      # Testing and unstable name no version.
      if [ "${version:-13}" -ge 13 ] 2>/dev/null; then
        echo "  sudo apt install python3 python3-venv"
      else
        echo "Debian $version has no package of it:"
        by_uv_or_pyenv
      fi
      ;;
    ubuntu)
      if [ "${version%%.*}" -ge 24 ] 2>/dev/null; then
        echo "  sudo apt install python3 python3-venv"
      else
        echo "Ubuntu $version has no package of its own of it:"
        if [ "$version" = 22.04 ]; then
          echo "  sudo add-apt-repository ppa:deadsnakes/ppa && sudo apt install python3.12 python3.12-venv"
        fi
        by_uv_or_pyenv
      fi
      ;;
    fedora | rhel | centos | rocky | almalinux) echo "  sudo dnf install python3.12" ;;
    arch) echo "  sudo pacman -S python" ;;
    *)
      echo "  with uv: uv python install $FETCH"
      echo "  or, with pyenv: pyenv install $FETCH"
      ;;
  esac
}

if [ -n "${1:-}" ]; then
  take_first_good "$(command -v "$1" 2>/dev/null)"
  say "$1 is not a CPython >= 3.12 with venv that runs here"
  exit 1
fi
look_on_path
look_in_pyenv
look_among_fetched
fetch
{
  echo "genaid needs Python 3.12 or newer (CPython, with venv). There is none on the PATH or in pyenv, and none could be"
  echo "fetched. Install one, then run make again:"
  advise
} >&2
exit 1
