# shellcheck shell=bash
# A private view of Debian's archive, to be sourced: the machine's own Debian sources plus the backports suite, with
# lists and downloads under .cache/apt. Packages are fetched and unpacked into folders, never installed, so no service
# starts and the machine's own source list stays as it is.
cache=${cache:?the folder of the caches}

# Prints the machine's Debian sources as one-line entries and adds backports next to the main suite.
apt_sources() {
  local codename entries main trust
  # shellcheck source=/dev/null
  codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
  [ -n "$codename" ] || { echo "hack: /etc/os-release names no Debian release" >&2; return 1; }
  trust='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] '
  [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || trust=
  # shellcheck disable=SC2016 # apt expands these, not the shell
  entries=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 2>/dev/null |
    awk -v c="$codename" '($2 == c || $2 == c "-updates" || $2 == c "-security" || $2 == c "-backports") && $3 == "main"' |
    sort -u)
  main=$(awk -v c="$codename" '$2 == c {print $1; exit}' <<<"$entries")
  [ -n "$main" ] || { echo "hack: no Debian $codename source is configured for apt" >&2; return 1; }
  { printf '%s\n' "$entries"; printf '%s %s-backports main\n' "$main" "$codename"; } | sort -u | sed "s|^|deb $trust|"
}

# Runs apt-get or apt-cache ($1) against the private view. dpkg's status is empty there, so that a dependency closure
# is complete whatever the machine has installed.
apt_private() {
  local tool=$1 dir=$cache/apt
  shift
  "$tool" -q -o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts="$dir/none" \
    -o Dir::State::lists="$dir/lists" -o Dir::State::status=/dev/null -o Dir::Cache::archives="$dir/archives" \
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root -o APT::Install-Recommends=false \
    -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
    -o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false "$@"
}

# Fetches the package lists, once a day.
apt_update() {
  local dir=$cache/apt
  mkdir -p "$dir/lists/partial" "$dir/archives/partial" "$dir/none"
  if [ -e "$dir/updated" ] && [ -n "$(find "$dir/updated" -mtime -1)" ]; then return 0; fi
  apt_sources >"$dir/sources.list"
  apt_private apt-get update >"$dir/update.log" 2>&1 || { cat "$dir/update.log" >&2; return 1; }
  touch "$dir/updated"
}

# Unpacks packages ($2...) without their dependencies into folder $1.
apt_unpack() {
  local into=$1 work
  shift
  apt_update
  work=$(mktemp -d "$cache/apt/get.XXXXXX")
  (cd "$work" && apt_private apt-get download "$@" >get.log 2>&1) ||
    { cat "$work/get.log" >&2; rm -rf "$work"; return 1; }
  mkdir -p "$into"
  local deb
  for deb in "$work"/*.deb; do dpkg-deb -x "$deb" "$into"; done
  rm -rf "$work"
}

# Unpacks packages ($2...) and all they depend on into folder $1. $apt_suite (optional) is the suite to prefer; the package
# $apt_skip (optional) is left out.
apt_unpack_closure() {
  local into=$1 work deb name
  shift
  apt_update
  work=$(mktemp -d "$cache/apt/get.XXXXXX")
  mkdir -p "$work/partial" "$into"
  apt_private apt-get -o Dir::Cache::archives="$work" -o Debug::NoLocking=1 ${apt_suite:+-t "$apt_suite"} \
    -y --download-only install "$@" >"$work/get.log" 2>&1 || { cat "$work/get.log" >&2; rm -rf "$work"; return 1; }
  for deb in "$work"/*.deb; do
    name=$(basename "${deb%%_*}")
    [ "$name" != "${apt_skip:-}" ] || continue
    dpkg-deb -x "$deb" "$into"
  done
  rm -rf "$work"
}
