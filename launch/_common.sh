# shellcheck shell=bash
# Sourced by the launchers, which share one grammar:
#
#   launch/NAME [options] -- RECIPE [options of jaxllm train]
#
# A launcher declares the table `option` (name to default; REQUIRED must be given, and `no` makes a switch), calls
# `parse "$@"`, and finds the values in the table, what follows `--` in `train`, and every `--with` in `with`.

readonly REQUIRED=$'\n'
here=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=${here%/*}
me=launch/${0##*/}
with=()
train=()

say() { printf '%s: %s\n' "$me" "$*" >&2; }
fail() { say "$*"; exit 2; }

# The words as one line of ASCII that bash reads back as they were: @Q in the C locale writes newlines, control
# characters and what is beyond ASCII as $'...', so that no layer in between (ssh, YAML) can change them.
quote() {
  local LC_ALL=C word line=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  printf '%s\n' "${line:1}"
}

dry() { [[ ${option[dry-run]} = yes ]]; }

# Run a command, or print it with --dry-run. `note` is a comment between such lines.
run() { if dry; then quote "$@"; else "$@"; fi; }
note() { if dry; then printf '# %s\n' "$*"; fi; }

# The comment at the top of a launcher is its help.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

known() { printf -- '--%s\n' "${!option[@]}" --with | sed 's/^----/--/' | sort -u | paste -sd ' '; }

parse() {
  local name
  local -A switch=()
  for name in "${!option[@]}"; do
    [[ ${option[$name]} != no ]] || switch[$name]=yes
  done
  while (($#)); do
    case $1 in
      -h | --help) usage; exit ;;
      --) break ;;
      --?*) ;;
      *) fail "unexpected '$1': options come first, then --, then the recipe ($me --help)" ;;
    esac
    name=${1#--} name=${name%%=*}
    [[ $name =~ ^[a-z-]+$ && (-v option[$name] || $name = with) ]] ||
      fail "there is no option --$name; there are $(known)"
    if [[ -v switch[$name] ]]; then
      [[ $1 = "--$name" ]] || fail "--$name is a switch and takes no value"
      option[$name]=yes
      shift
      continue
    fi
    if [[ $1 = *=* ]]; then
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
    fi
    [[ $# -gt 1 && $2 != -- && -n $2 ]] || fail "--$name needs a value"
    if [[ $name = with ]]; then with+=("$2"); else option[$name]=$2; fi
    shift 2
  done
  for name in "${!option[@]}"; do
    [[ ${option[$name]} != "$REQUIRED" ]] || fail "--$name is needed ($me --help)"
  done
  (($# > 1)) || fail "no recipe: $me [options] -- RECIPE [options of jaxllm train]"
  train=("${@:2}")
  [[ -e ${train[0]} ]] || fail "there is no recipe or run folder '${train[0]}'"
}

# need_number NAME LEAST [MOST]: an option that counts something.
need_number() {
  local most=${3:-999999}
  [[ ${option[$1]} =~ ^(0|[1-9][0-9]{0,5})$ ]] && ((option[$1] >= $2 && option[$1] <= most)) ||
    fail "--$1 ${option[$1]}: expected a whole number from $2 to $most"
}

# need_match NAME PATTERN WHAT: an option whose value must look like WHAT.
need_match() { [[ ${option[$1]} =~ ^($2)$ ]] || fail "--$1 ${option[$1]}: expected $3"; }

# A name that every service takes, and the run's own folder in the place where runs are kept.
need_name() { need_match name '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' 'at most 40 of a-z, 0-9 and -, a letter first'; }

# need_tool COMMAND WHERE: checked before anything starts; --dry-run works without.
need_tool() { dry || command -v "$1" >/dev/null || fail "'$1' is not installed; $2"; }

# The recipe travels with the checkout, so it must lie in it; its path becomes one from there. The run's folder is
# the launcher's to choose: it must lie where every machine, also one that comes after a preemption, sees it.
travel() {
  local word recipe
  [[ -f ${train[0]} ]] || fail "'${train[0]}' is no recipe; the command that began a run also goes on with it"
  recipe=$(realpath -- "${train[0]}")
  [[ $recipe = "$root"/* ]] || fail "recipe '${train[0]}' must lie in $root, which is what the machines get"
  train[0]=${recipe#"$root"/}
  [[ ${train[0]} != runs/* ]] || fail "recipe '${train[0]}' must lie outside of runs/, which does not travel"
  for word in "${train[@]}"; do
    [[ $word != --output && $word != --output=* ]] || fail "leave --output out: the run's folder is $1"
  done
  train+=(--output "$1")
}
