# shellcheck shell=bash
# Sourced by its neighbours. `make_venv EXTRA` leaves a virtual environment in $venv that has the project and
# that extra (empty for none) installed, and does nothing when it is there already.
#   PYTHON         the interpreter to build it with (default: the first that is new enough of python3, python3.13, ...)
#   JAXLLM_VENV    its folder (default: .venv in the checkout)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${JAXLLM_VENV:-$root/.venv}
[[ $venv = /* ]] || venv=$PWD/$venv

say() { printf '\n== %s\n' "$*"; }
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 2; }

# Version of an interpreter, as `3.11`; fails when it does not start (as the shims of version managers may).
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null </dev/null; }

supported() { [[ $(version "$1") =~ ^3\.1[123]$ ]]; }

find_python() {
  local name names=(python3 python3.13 python3.12 python3.11)
  [[ -z ${PYTHON:-} ]] || names=("$PYTHON")
  for name in "${names[@]}"; do
    if supported "$name"; then command -v "$name"; return; fi
  done
  name=${PYTHON:-python3}
  fail "Python 3.11, 3.12 or 3.13 is needed, and '$name' is $(version "$name" || echo 'not a Python that starts');" \
    "install one, or name it: PYTHON=/path/to/python3.11 tools/${0##*/}"
}

# Whole: its interpreter starts (and is the one that $PYTHON asks for), and no installation was cut short.
is_whole() {
  [[ -f $venv/pyvenv.cfg && ! -e $venv/.installing ]] && supported "$venv/bin/python" || return 1
  [[ -z ${PYTHON:-} || $(version "$PYTHON") = "$(version "$venv/bin/python")" ]] || return 1
  command -v uv >/dev/null || "$venv/bin/python" -m pip --version >/dev/null 2>&1
}

create_venv() {
  local python
  python=$(find_python) || exit
  # What is removed below must be ours: the default folder, an empty one or a virtual environment.
  if [[ $venv != "$root/.venv" && ! -f $venv/pyvenv.cfg && -n $(ls -A "$venv" 2>/dev/null) ]]; then
    fail "JAXLLM_VENV=$venv is not a virtual environment; name another folder or remove it"
  fi
  say "making $venv with $python ($(version "$python"))"
  rm -rf -- "$venv"
  if command -v uv >/dev/null; then
    uv venv --quiet --python "$python" "$venv" || fail "uv could not make $venv"
  elif "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    "$python" -m venv "$venv" || fail "$python could not make $venv"
  else
    fail "$python has no venv module; install it (Debian, Ubuntu: apt install python$(version "$python")-venv)" \
      "or uv (https://docs.astral.sh/uv)"
  fi
}

# `.installing` outlives a kill, so that a half-written package is never used; a refusal by the installer
# itself (no network, no such version) changes nothing and removes it.
install() {
  local target=$1 status=0
  trap 'exit 130' INT TERM
  touch "$venv/.installing"
  if command -v uv >/dev/null; then
    uv pip install --python "$venv/bin/python" --editable "$target" </dev/null || status=$?
  else
    "$venv/bin/python" -m pip install --no-input --disable-pip-version-check --editable "$target" </dev/null || status=$?
  fi
  ((status > 128)) || rm "$venv/.installing"
  trap - INT TERM
  return $status
}

make_venv() {
  local extra=${1:-} key stamp target
  key="$(sha256sum "$root/pyproject.toml" | cut -d ' ' -f 1) $root"  # an installation names its checkout
  stamp=$venv/.installed-${extra:-core}
  target=$root${extra:+[$extra]}
  is_whole || create_venv
  [[ $(cat "$stamp" 2>/dev/null) = "$key" ]] && return
  say "installing $target into $venv (minutes the first time, a gigabyte of packages)"
  install "$target" || fail "could not install $target (see above); mend that and run tools/${0##*/} again"
  echo "$key" >"$stamp"
}
