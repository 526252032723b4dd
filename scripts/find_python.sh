#!/bin/sh
# Print the path of the first Python >= 3.12 that really runs. Version managers put shims on the PATH
# that answer to a name and then fail, so each candidate is run before it is believed.
set -u

good() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1
}

for name in python3.14 python3.13 python3.12 python3 python; do
  candidate=$(command -v "$name" 2>/dev/null) || candidate=
  if [ -n "$candidate" ] && good "$candidate"; then
    echo "$candidate"
    exit 0
  fi
  case "$name" in python3.*) minor=${name#python} ;; *) continue ;; esac
  for candidate in "$HOME"/.pyenv/versions/"$minor"*/bin/python; do
    if [ -x "$candidate" ] && good "$candidate"; then
      echo "$candidate"
      exit 0
    fi
  done
done

cat >&2 <<'EOF'
genaid needs Python 3.12 or newer (with venv), and none was found on the PATH or in ~/.pyenv/versions.
Install one, then run make again:
  Debian, Ubuntu   sudo apt install python3.12 python3.12-venv
  Fedora           sudo dnf install python3.12
  macOS            brew install python@3.12
  Windows          winget install Python.Python.3.12
  anywhere         pyenv install 3.12
EOF
exit 1
